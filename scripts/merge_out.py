"""`merge.py out=FOLDER`: one merge of any adapters, in this process, to a folder of the user's choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robustmerge.method_files import list_methods
from robustmerge.runs import BESIDE, Address, run_stage
from robustmerge.settings import UserError, suggest
from scripts import steps, summary
from scripts.line import Line


def merge_out(lines: Sequence[Line]) -> None:
    """Merge the experts of the one line with its one method into `out=`, and tell what came of it.

    The folder gets the manifest of a merge in the line, so that it is the same source wherever it lies.
    Raises UserError if there is more than one merge, or something in the folder.
    """
    line, address = lines[0], _address(lines)
    if line.config.experts is None:
        steps.check_experts(lines, multi_task=False)
    (method,) = line.config.methods
    experts = {name: expert.path for name, expert in line.experts.items()}

    from robustmerge.merging import write_merged

    def write(folder: Path) -> dict:
        return write_merged(folder, method, experts, say=lambda told: None, workers=line.config.jobs)

    run_stage(address, write)
    summary.tell_merged(address, method, line.config.out)


def _address(lines: Sequence[Line]) -> Address:
    """What is merged, in the folder that is asked for."""
    if len(lines) > 1:
        raise UserError("out= is one folder, and a sweep makes several merges; leave out= away, or sweep over nothing")
    (line,) = lines
    out = Path(line.config.out).expanduser().absolute()
    if len(line.config.methods) > 1:
        raise UserError(f"out= is one folder for one merge: add merge=NAME; {suggest('', list_methods())}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder (out)")
    if out.is_dir() and any(not file.name.endswith(BESIDE) for file in out.iterdir()):
        raise UserError(f"{out} is there already and is not empty; choose another folder, or remove it (out)")
    return dataclasses.replace(line.merged(line.config.methods[0]), path=out)
