"""Rows of question files that cannot be used: why, where they are, and the lines of rejected.jsonl about them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

REJECTED = "rejected.jsonl"
FAULTY, NO_PICTURE, BAD_PICTURE = "faulty row", "missing picture", "unreadable picture"


class Fault(NamedTuple):
    """Why a row cannot be used. kind: one of the three above; file, place: where the row is."""

    kind: str
    text: str
    file: str
    place: str
    question_id: str = ""

    def __str__(self) -> str:
        return self.text if self.kind == BAD_PICTURE else f"{self.file}, {self.place}: {self.text}"


def format_kinds(kinds: Mapping[str, int]) -> str:
    """Numbers of faults by kind: `faulty row: 3, missing picture: 1`."""
    return ", ".join(f"{kind}: {count:,}" for kind, count in kinds.items())


def format_rejected(split: str, number: int, fault: Fault) -> bytes:
    """The line of rejected.jsonl about a row."""
    entry = {"split": split, "row": number, **fault._asdict(), "file": os.path.basename(fault.file)}
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
