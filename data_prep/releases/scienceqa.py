"""ScienceQA as its owners publish it: problems with options, half of them without a picture.

A problem is a question with its options, its hint first where it has one, and the letter of the right option as answer.
The published files have the same problems (12,726 of train, 4,241 of test) in the owners' order. Where they put a hint
is not known: no published row with one was at hand. Lectures and solutions, which give the answer away, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_problems, map_rows, take
from data_prep.templates import LETTER, find_letter, list_options, phrase
from robustmerge.stage.json_stream import Element

VERSION = 1
_PICTURES = "https://scienceqa.s3.us-west-1.amazonaws.com/images"
ORIGIN = Origin(
    "ScienceQA",
    "CC BY-NC-SA 4.0",
    (
        Download(
            "ScienceQA/problems.json, ScienceQA/pid_splits.json",
            "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa",
            "31 MB",
        ),
        Download(
            "ScienceQA/images/{train,test}.zip, packed or unpacked",
            f"{_PICTURES}/train.zip, {_PICTURES}/test.zip",
            "about 600 MB",
        ),
    ),
    "the place of the hint in the published question files, and the topmost folder of the archives",
)
FILES = dict.fromkeys(("train", "val", "test"), ("ScienceQA/problems.json", "ScienceQA/pid_splits.json"))
_DETAILS = ("subject", "topic", "category", "skill", "grade")


def convert(split: str, problems: Path, splits: Path) -> Iterator[Element]:
    """Yield the problems of a split. One whose right option does not exist has no answer, and is refused as such."""
    return map_rows(partial(_ask, split), iterate_problems(problems, splits, [split]), problems)


def _ask(split: str, row: Element) -> Element:
    problem, pid = row.value, row.key
    hint, choices = take(problem, "hint", str), take(problem, "choices", list)
    context = f"Context: {hint}" if hint.strip() else ""
    picture = problem["image"]
    record = {
        "question_id": pid,
        "image": f"ScienceQA/images/{split}/{pid}/{picture}" if picture else None,
        "text": phrase(take(problem, "question", str), list_options(choices), LETTER, above=context),
        "answer": find_letter(take(problem, "answer", int), choices),
        "choices": choices,
        "category": problem["subject"],
        "details": {"split": split} | {name: problem[name] for name in _DETAILS},
    }
    return Element(row.place, record)
