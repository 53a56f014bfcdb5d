"""The journal of an import: a line for every finished row of a split, by which a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from data_prep.faults import Fault
from robustmerge.stage.records import Example, format_example, parse_example


class Entry(NamedTuple):
    """A finished row. number: from 1; result: its example, or why it cannot be used."""

    number: int
    result: Example | Fault


def append(file: IO[str], entry: Entry) -> None:
    """Add a line to a journal that is open for appending."""
    number, result = entry
    fault, example = (result, "null") if isinstance(result, Fault) else (None, format_example(result).strip())
    file.write(f'{{"row": {number}, "fault": {json.dumps(fault)}, "example": {example}}}\n')


def read(journal: Path) -> Iterator[Entry]:
    """Yield the entries of a journal that is whole."""
    with open(journal, "rb") as file:
        yield from map(_parse, file)


def keep_while(journal: Path, holds: Callable[[Entry], bool]) -> Iterator[Entry]:
    """Yield the entries up to the first that does not hold, or that a kill has cut, and remove the rest."""
    if not journal.exists():
        return
    size = 0
    with open(journal, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or not holds(entry := _parse(line)):
                break
            size += len(line)
            yield entry
        file.truncate(size)


def _parse(line: bytes) -> Entry:
    read = json.loads(line)
    return Entry(read["row"], Fault(*read["fault"]) if read["fault"] else parse_example(read["example"]))
