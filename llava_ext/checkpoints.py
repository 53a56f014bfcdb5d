"""Checkpoints that count: a folder `checkpoint-<step>` is complete once its marker is written, last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from robustmerge.runs import write_atomically

MARKER = "complete.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")


def mark_complete(checkpoint: Path, layout: Mapping[str, object]) -> None:
    """Say that everything in `checkpoint` is written. layout: what a run must share to go on from it."""
    write_atomically(checkpoint / MARKER, json.dumps(dict(layout), sort_keys=True) + "\n")


def newest_complete(folder: Path, layout: Mapping[str, object]) -> Path | None:
    """The complete checkpoint of the highest step that was written by a run of this layout."""
    return max((path for path in _all(folder) if _layout(path) == dict(layout)), key=_step, default=None)


def remove_others(folder: Path, kept: Path | None) -> None:
    """Remove every checkpoint but `kept`: cut ones, older ones and those of another layout.

    The marker goes first, so that a removal that is cut short does not leave half a checkpoint that counts.
    """
    for path in _all(folder):
        if path != kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


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
