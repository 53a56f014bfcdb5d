"""`merge.py out=FOLDER`: one merge of any adapters, in this process, to a folder of the user's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustmerge.method_files import list_methods
from robustmerge.settings import UserError, suggest
from scripts import steps, summary
from scripts.line import Line


def merge_out(lines: Sequence[Line]) -> None:
    """Merge the experts of the one line with its one method into `out=`, and tell what came of it.

    Raises UserError if there is more than one merge, or something else in the folder.
    """
    if len(lines) > 1:
        raise UserError("out= is one folder, and a sweep makes several merges; leave out= away, or sweep over nothing")
    (line,) = lines
    config = line.config
    if len(config.methods) > 1:
        raise UserError(f"out= is one folder for one merge: add merge=NAME; {suggest('', list_methods())}")
    if config.experts is None:
        steps.check_experts(lines, multi_task=False)

    from robustmerge.merging import merge_folders

    experts = {name: address.path for name, address in line.experts.items()}
    folder = Path(config.out).expanduser().absolute()
    merge_folders(experts, config.methods[0], folder, config.jobs, say=lambda told: None)
    summary.tell_merged(folder, config.methods[0], config.out)
