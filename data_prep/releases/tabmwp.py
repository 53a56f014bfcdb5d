"""TabMWP as its owners publish it: word problems on tables, with an answer in numbers or words, or by options.

The picture shows the table, so that its text is left out. How the published test.json words options and units is not
known: here the unit follows the question, and the options are lines `A. yes`. Its answer is the text of the right
option, as here, which the published score compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import map_rows, take
from data_prep.templates import SHORT, list_options, phrase
from robustmerge.stage.json_stream import Element, iterate_members

VERSION = 1
ORIGIN = Origin(
    "TabMWP",
    "CC BY-NC-SA 4.0",
    (
        Download(
            "TabMWP/problems_test.json, TabMWP/tables/*.png: the repository's folder data/tabmwp",
            "https://github.com/lupantech/PromptPG",
            "1 GB",
        ),
    ),
    "the published wording of options and units, and whether the published file has the test split or its part test1k",
)
FILES = {split: (f"TabMWP/problems_{split}.json",) for split in ("test", "test1k")}
_DETAILS = ("unit", "ques_type", "ans_type", "grade")


def convert(split: str, problems: Path) -> Iterator[Element]:
    """Yield the problems of a split."""
    return map_rows(_ask, iterate_members(problems, "problems of TabMWP"), problems)


def _ask(row: Element) -> Element:
    problem = row.value
    question, unit, choices = take(problem, "question", str), problem["unit"], problem["choices"] or []
    asked = f"{question} (unit: {unit})" if unit and question.strip() else question
    record = {
        "question_id": row.key,
        "image": f"TabMWP/tables/{row.key}.png",
        "text": phrase(asked, list_options(choices), SHORT),
        "answer": problem["answer"],
        "choices": choices,
        "category": take(problem, "ques_type", str),
        "details": {name: problem[name] for name in _DETAILS},
    }
    return Element(row.place, record)
