"""Training rows whose picture cannot be read: each is replaced by the next row of the run, and noted.

A batch so stays whole, and the rows in it depend only on the order of the run and on which pictures can be read: not on
processes, batches or workers, nor on where a run was resumed. A note is a file named by the position in the run. Any
process and worker writes its own, and writing one again changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ext.data import Rows
from robustmerge.stage.files import read_json, write_atomically
from robustmerge.stage.pictures import PictureError, read_picture

UNREAD = "unread"  # the folder of the notes, among the checkpoints
MOST_IN_A_ROW = 64  # unreadable pictures; so many are due to the folder or the disk, and stop the run
SHOWN = 20


class ReadableRows(Rows):
    """Training rows in the order of the run, with their pictures read; a row without a readable one is replaced."""

    def __init__(self, rows: Sequence, order: Sequence[int], notes: Path):
        super().__init__(rows, order)
        self.notes = notes

    def __getitem__(self, index: int) -> Any:
        for position in range(index, index + MOST_IN_A_ROW):
            row = super().__getitem__(position % len(self))
            if row.picture is None:
                return row
            try:
                return dataclasses.replace(row, picture=read_picture(row.picture))
            except PictureError as error:
                if position == index:
                    self._note(index, row.name, str(error))
        return super().__getitem__(index)  # collating it raises the error

    def _note(self, index: int, name: str, error: str) -> None:
        self.notes.mkdir(exist_ok=True)
        write_atomically(self.notes / f"{index:09d}.json", json.dumps({"row": name, "error": error}))


def forget_unread(notes: Path, position: int) -> None:
    """Remove the notes from a position of the run on, of rows that are going to be read again."""
    for file in notes.glob("*.json"):
        if int(file.stem) >= position:
            file.unlink()


def summarise_unread(notes: Path) -> dict[str, Any] | None:
    """What the record says of the rows that were replaced; None if there are none.

    samples: how often; rows: how many different ones; first: names of the first ones.
    """
    names = [read_json(file, "a note on a row")["row"] for file in sorted(notes.glob("*.json"))]
    different = list(dict.fromkeys(names))
    return {"samples": len(names), "rows": len(different), "first": different[:SHOWN]} if names else None


def describe_unread(summary: dict[str, Any]) -> str:
    """A line on the rows that were replaced."""
    rows, samples, first = summary["rows"], summary["samples"], "; ".join(summary["first"][:3])
    rest = f"; and {rows - 3:,} more" if rows > 3 else ""
    return (
        f"pictures that cannot be read, of rows in whose place the next row of the run was trained on: {rows:,}, in "
        f"{samples:,} samples ({first}{rest})"
    )
