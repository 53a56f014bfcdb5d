"""The files of prepared splits: JSON lines and LLaVA's question file of each; the part of train that serves as val."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from data_prep.settings import SPLITS, TaskData
from robustmerge.stage.files import WholeFile
from robustmerge.stage.records import Example, format_example

_ALWAYS = ("question_id", "text", "answer")
_FIELDS = ("question_id", "image", "text", "answer", "references", "choices", "size", "turns", "category", "details")


class SplitWriter:
    """Writes one split example by example: as JSON lines, and as LLaVA's question file, a list."""

    def __init__(self, lines: BinaryIO, questions: BinaryIO):
        self._lines, self._questions = lines, questions
        self._is_empty = True

    def write(self, example: Example) -> None:
        self._lines.write(format_example(example).encode())
        question = json.dumps(_llava_question(example), ensure_ascii=False, indent=1).replace("\n", "\n ")
        self._questions.write(f"{'[' if self._is_empty else ','}\n {question}".encode())
        self._is_empty = False

    def end(self) -> None:
        self._questions.write(b"[]\n" if self._is_empty else b"\n]\n")


@contextlib.contextmanager
def open_split(folder: Path, split: str) -> Iterator[SplitWriter]:
    """Context manager of a split that is written: its files appear when the block ends without an error."""
    with WholeFile(folder / f"{split}.jsonl") as lines, WholeFile(folder / f"{split}.json") as questions:
        writer = SplitWriter(lines.file, questions.file)
        yield writer
        writer.end()


def write_splits(folder: Path, splits: Mapping[str, Sequence[Example]]) -> None:
    """Write all splits of a task."""
    for split in SPLITS:
        with open_split(folder, split) as writer:
            for example in splits[split]:
                writer.write(example)


def _llava_question(example: Example) -> dict:
    """An example in LLaVA's question format: question_id, image, text, answer, and its further fields."""
    return {name: getattr(example, name) for name in _FIELDS if name in _ALWAYS or getattr(example, name)}


def draw_val(asked: Mapping[str, int], settings: TaskData) -> frozenset[str]:
    """Choose the pictures of train whose questions serve as val: all questions on a picture go together.

    asked: how many questions each picture has. Pictures are tried in the order of a hash with the seed, and taken while
    there is room for their questions: at most counts.val, and at most a tenth. Where all have too many questions, the
    first one with the fewest is taken; of a single picture nothing is.
    """
    room = min(settings.counts.val, max(1, sum(asked.values()) // 10))
    if len(asked) < 2 or not room:
        return frozenset()
    key = f"{settings.seed}/{settings.task}/val/"
    order = sorted(asked, key=lambda name: hashlib.sha256((key + name).encode()).digest())
    chosen: set[str] = set()
    for picture in order:
        if asked[picture] <= room:
            chosen.add(picture)
            room -= asked[picture]
        if not room:
            break
    return frozenset(chosen or {min(order, key=asked.__getitem__)})
