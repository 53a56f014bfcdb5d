"""VQAv2 as its owners publish it: questions, ten answers each, pictures of COCO 2014.

The published benchmark keeps the commonest answer of each question; the ten are references here. A question is a row
here, 443,757 of train and 214,354 of val. How many rows the published files have, and in which order, is not known;
that of train is said to have 82,783, a dialogue of all questions for every picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_list, map_rows, take
from data_prep.templates import SHORT, phrase
from robustmerge.stage.json_stream import Element

VERSION = 1
ORIGIN = Origin(
    "VQAv2",
    "CC BY 4.0 (questions, answers); Flickr's terms of use (pictures)",
    (
        Download(
            "VQAv2/v2_OpenEnded_mscoco_{train2014,val2014}_questions.json, "
            "VQAv2/v2_mscoco_{train2014,val2014}_annotations.json",
            "https://visualqa.org/download.html",
            "42 MB",
        ),
        Download(
            "COCO2014/{train2014,val2014}.zip, packed or unpacked",
            "http://images.cocodataset.org/zips/train2014.zip, http://images.cocodataset.org/zips/val2014.zip",
            "20 GB",
        ),
    ),
    "whether the published training file groups the questions on a picture into dialogues",
)
_FILES = ("VQAv2/v2_OpenEnded_mscoco_{}_questions.json", "VQAv2/v2_mscoco_{}_annotations.json")
FILES = {split: tuple(name.format(split) for name in _FILES) for split in ("train2014", "val2014")}


class _Annotation(NamedTuple):
    """What is answered to a question. kind: of the answer, yes/no, number or other; question_type: its first words."""

    answer: str = ""
    answers: tuple[str, ...] = ()
    kind: str = ""
    question_type: str = ""


def convert(split: str, questions: Path, annotations: Path) -> Iterator[Element]:
    """Yield the questions of a split. A question without an annotation has no answer, and is refused as such."""
    rest = map_rows(_read_annotation, iterate_list(annotations, "annotations", "annotations of VQAv2"), annotations)
    read: dict[int, _Annotation] = {}  # and not asked for yet: few, as both files have one order

    def find_annotation(question_id: int) -> _Annotation:
        while question_id not in read and (found := next(rest, None)):
            read.update([found])
        return read.pop(question_id, _Annotation())

    def ask(row: Element) -> Element:
        question = row.value
        question_id = take(question, "question_id", int)
        found = find_annotation(question_id)
        record = {
            "question_id": question_id,
            "image": f"COCO2014/{split}/COCO_{split}_{take(question, 'image_id', int):012d}.jpg",
            "text": phrase(take(question, "question", str), SHORT),
            "answer": found.answer,
            "references": list(found.answers),
            "category": found.kind,
            "details": {"question_type": found.question_type},
        }
        return Element(row.place, record)

    return map_rows(ask, iterate_list(questions, "questions", "questions of VQAv2"), questions)


def _read_annotation(row: Element) -> tuple[int, _Annotation]:
    annotation = row.value
    answers = tuple(one["answer"] for one in annotation["answers"] if one["answer"].strip())
    kinds = annotation["answer_type"], annotation["question_type"]
    return take(annotation, "question_id", int), _Annotation(annotation["multiple_choice_answer"], answers, *kinds)
