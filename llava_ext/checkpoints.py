"""What counts after a kill: complete checkpoints, and the record of a training that has ended.

A folder `checkpoint-<step>` is complete once its marker is written, last; a training has ended once its record is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from robustmerge.runs import UserError, write_atomically

MARKER = "complete.json"
RECORD = "training.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")


def mark_complete(checkpoint: Path, layout: Mapping[str, object]) -> None:
    """Say that everything in `checkpoint` is written. layout: what a run must share to go on from it."""
    write_atomically(checkpoint / MARKER, json.dumps(dict(layout), sort_keys=True) + "\n")


def newest_complete(folder: Path, layout: Mapping[str, object]) -> Path | None:
    """The complete checkpoint of the highest step that was written by a run of this layout."""
    return max((path for path in _all(folder) if _layout(path) == dict(layout)), key=_step, default=None)


def lost_to_layout(folder: Path, kept: Path | None, layout: Mapping[str, object]) -> str | None:
    """In words, what `remove_others` takes away only because it was written by a run of another layout."""
    further = [path for path in _all(folder) if kept is None or _step(path) > _step(kept)]
    path = max((path for path in further if _layout(path) not in (None, dict(layout))), key=_step, default=None)
    if path is None:
        return None
    found = _layout(path)
    changed = [f"{key} {found.get(key)}, now {value}" for key, value in layout.items() if found.get(key) != value]
    return f"{path.name} cannot be used and is removed: it was written with {'; '.join(changed)}"


def remove_others(folder: Path, kept: Path | None) -> None:
    """Remove every checkpoint but `kept`: cut ones, older ones and those of another layout.

    The marker goes first, so that a removal that is cut short does not leave half a checkpoint that counts.
    """
    for path in _all(folder):
        if path != kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def finish(folder: Path, work: Path, record: dict) -> dict:
    """End a training whose results are all in `folder`: write its record there, then remove `work`. Returns the record.

    Raises UserError if a pickle is among the results.
    """
    if left := [path for path in pickles_in(folder) if work not in path.parents]:
        raise UserError(f"a trained model's folder must hold no pickle, found {left[0]}")
    write_atomically(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    remove_work(work)
    return record


def read_finished(folder: Path) -> dict | None:
    """The record of a training that has ended, even if it was killed just then; None if there is more to train."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None


def remove_work(work: Path) -> None:
    """Remove the folder of checkpoints."""
    if work.exists():
        shutil.rmtree(work)


def pickles_in(folder: Path) -> list[Path]:
    """Files that would have to be unpickled to be read."""
    return sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)


def _all(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*") if folder.exists() else ()
    return [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _layout(path: Path) -> dict | None:
    try:
        return json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return None
