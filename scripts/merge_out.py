"""`merge.py out=FOLDER`: one merge of any adapters, in this process, to a folder of the user's choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robustmerge.method import Method, OutsideMethod
from robustmerge.method_files import list_methods
from robustmerge.settings import UserError, suggest
from scripts import steps, summary
from scripts.fetching import convert
from scripts.line import Line, require


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
    experts = {name: address.path for name, address in line.experts.items()}
    convert(lines)

    from robustmerge.merging import merge_folders

    folder = Path(config.out).expanduser().absolute()
    method = with_base(line, config.methods[0])
    was_there = (folder / "manifest.json").exists()  # of another merge: then it is refused
    merge_folders(experts, method, folder, config.jobs, say=lambda told: None)
    summary.tell_merged(folder, method, config.out, was_there)


def with_base(line: Line, method: Method | OutsideMethod) -> Method | OutsideMethod:
    """The method, for a full model of the line's own experts with the line's base: they name it, but not where it is.

    Raises UserError if that base is not there.
    """
    if method.out.format != "model" or method.out.base is not None or line.config.experts is not None:
        return method
    if line.config.model.base is not None:
        require([line.base], "base model is", steps.train_all_command())
    return dataclasses.replace(method, out=dataclasses.replace(method.out, base=str(line.base.path)))
