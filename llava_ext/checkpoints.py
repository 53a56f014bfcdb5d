"""Checkpoints of a training: which are complete, and which a run may go on from.

A checkpoint counts once its marker is written, which is after all of its other files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ext.settings import Trainer
from robustmerge.stage.files import read_json, write_atomically
from robustmerge.stage.settings import UserError

MARKER = "complete.json"  # in a checkpoint: the batching of the run that wrote it
EARLIER = "earlier"  # in the marker: the batchings of the runs that this one went on from, and up to which step
PARTITIONED = "latest"  # a file of DeepSpeed's checkpoints, whose optimizer states are in parts


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and its marker (the batching of the run that wrote it, and `earlier`)."""

    path: Path
    marker: dict[str, Any]

    @property
    def step(self) -> int:
        return _step(self.path)

    @property
    def batching(self) -> dict[str, Any]:
        return {key: value for key, value in self.marker.items() if key != EARLIER}

    def mark(self, batching: Mapping[str, Any]) -> dict[str, Any]:
        """The marker of a run of this batching that goes on from here."""
        if self.batching == dict(batching):
            return self.marker
        earlier = [*self.marker.get(EARLIER, []), {"up_to_step": self.step, **self.batching}]
        return {**batching, EARLIER: earlier}


def find_checkpoint(folder: Path, batching: Mapping[str, Any], trainer: Trainer) -> Checkpoint | None:
    """Find the latest complete checkpoint, from which a run of this batching goes on.

    Raises UserError if a run of another batching wrote it and `trainer.resume` does not allow that, or if DeepSpeed
    cannot read it.
    """
    newest = max(filter(None, map(_open, _list_checkpoints(folder))), key=lambda one: one.step, default=None)
    if newest is None or newest.batching == dict(batching):
        return newest
    changes = "; ".join(
        f"{key} {newest.batching.get(key)}, now {value}"
        for key, value in batching.items()
        if newest.batching.get(key) != value
    )
    found = f"{newest.path} is the checkpoint to go on from, but it was written with {changes}"
    over = f"remove {folder} to start over"
    if trainer.uses_deepspeed or (newest.path / PARTITIONED).exists():
        fixed = ("engine", "processes")  # they decide which process holds which part of the optimizer's state
        if any(newest.batching.get(key) != batching.get(key) for key in fixed):
            raise UserError(
                f"{found}. DeepSpeed reads it with that engine and number of processes alone: set these, or {over}"
            )
    if trainer.resume == "exact":
        raise UserError(
            f"{found}. With trainer.resume=any this run goes on from it, and its record says so: the samples of each "
            f"step are the same, the rounding and the dropout are not. Set these as they were, or that, or {over}"
        )
    return newest


def mark_complete(checkpoint: Path, marker: Mapping[str, Any]) -> None:
    """Write the marker of a checkpoint whose other files are all written."""
    write_atomically(checkpoint / MARKER, json.dumps(dict(marker), sort_keys=True) + "\n")


def remove_other_checkpoints(folder: Path, kept: Path | None) -> None:
    """Remove every checkpoint but `kept`: incomplete and older ones.

    The marker goes first, so that a removal that is cut short does not leave half a checkpoint that counts.
    """
    for path in _list_checkpoints(folder):
        if path != kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def _list_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _open(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None if it has no marker."""
    try:
        marker = read_json(path / MARKER, "the marker of a checkpoint")
    except UserError:
        return None
    return Checkpoint(path, marker)
