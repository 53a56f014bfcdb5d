"""IconQA as its owners publish it: questions on abstract diagrams, in three sub-tasks.

The published files have the two sub-tasks with one picture a question, choose_txt and fill_in_blank: 29,859 questions
of train, 9,954 of val. Options are numbered from 0, though the question asks for a letter, as in HiDe-LLaVA's files,
from which the published ones are taken; that the answers are these numbers is inferred from that, not seen. The options
stand in `details`, because `choices` have letters. Rows come in the owners' order, but the published training rows are
shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_problems, map_rows, take
from data_prep.templates import LETTER, SHORT, phrase
from robustmerge.stage.json_stream import Element
from robustmerge.stage.records import format_scalar

VERSION = 1
ORIGIN = Origin(
    "IconQA",
    "CC BY-NC-SA 4.0",
    (
        Download(
            "IconQA/iconqa_data.zip, packed or unpacked; of it, IconQA/iconqa_data/{problems,pid_splits}.json unpacked",
            "https://iconqa2021.s3.us-west-1.amazonaws.com/iconqa_data.zip",
            "about 1.2 GB",
        ),
    ),
    "whether the published answers are the numbers of options, and how the archive is laid out beyond its pictures",
)
_FOLDER = "IconQA/iconqa_data"
FILES = dict.fromkeys(("train", "val", "test"), (f"{_FOLDER}/problems.json", f"{_FOLDER}/pid_splits.json"))
_CHOOSE, _FILL_IN = "choose_txt", "fill_in_blank"


def convert(split: str, problems: Path, splits: Path) -> Iterator[Element]:
    """Yield the questions of a split. One whose right option does not exist has no answer, and is refused as such."""
    listed = iterate_problems(problems, splits, [f"{kind}_{split}" for kind in (_CHOOSE, _FILL_IN)])
    return map_rows(partial(_ask, split), listed, problems)


def _ask(split: str, row: Element) -> Element:
    problem, pid = row.value, row.key
    kind, question, answer = problem["ques_type"], take(problem, "question", str), problem["answer"]
    text, details = phrase(question, SHORT), {"grade": problem["grade"], "label": problem["label"]}
    if kind == _CHOOSE:
        options = [format_scalar(option, "an entry of field 'choices'") for option in take(problem, "choices", list)]
        number = format_scalar(answer, "field 'answer'")
        answer = number if number in map(str, range(len(options))) else ""
        text = phrase(question, *(f"{number}. {option}" for number, option in enumerate(options)), LETTER)
        details["options"] = options
    record = {
        "question_id": pid,
        "image": f"{_FOLDER}/iconqa/{split}/{kind}/{pid}/image.png",
        "text": text,
        "answer": answer,
        "category": kind,
        "details": details,
    }
    return Element(row.place, record)
