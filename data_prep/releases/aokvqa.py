"""A-OKVQA as its owners publish it: four options and ten direct answers a question, pictures of COCO 2017.

The published benchmark asks for an option, on `val` (1,145 questions). It names the pictures as COCO 2014 does, whose
val2014 has all that are in val2017: the splits here say under which names the pictures lie. Whether its answers are
letters is not known, only that its questions ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import map_rows, take
from data_prep.templates import LETTER, find_letter, list_options, phrase
from robustmerge.stage.json_stream import Element, iterate_records

VERSION = 1
ORIGIN = Origin(
    "A-OKVQA",
    "Apache-2.0 (questions, answers); Flickr's terms of use (pictures)",
    (
        Download(
            "AOKVQA/aokvqa_v1p0_val.json",
            "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz",
            "a few MB",
        ),
        Download(
            "COCO2014/val2014.zip, or COCO2017/val2017.zip with the split val2017",
            "http://images.cocodataset.org/zips/val2014.zip, http://images.cocodataset.org/zips/val2017.zip",
            "6.6 GB, or 0.8 GB",
        ),
    ),
    "whether the published answers are letters, and whether every picture is in val2014 (COCO's documentation says so)",
)
_PICTURES = {
    "val2014": "COCO2014/val2014/COCO_val2014_{:012d}.jpg",
    "val2017": "COCO2017/val2017/{:012d}.jpg",
}
FILES = dict.fromkeys(_PICTURES, ("AOKVQA/aokvqa_v1p0_val.json",))
_DETAILS = ("direct_answers", "difficult_direct_answer")  # for the owners' other metric


def convert(split: str, questions: Path) -> Iterator[Element]:
    """Yield the questions of val. split: where their pictures lie."""
    return map_rows(partial(_ask, split), iterate_records(questions, "questions of A-OKVQA"), questions)


def _ask(split: str, row: Element) -> Element:
    """A question. One whose right option is none of the options has no answer, and is refused as such."""
    question = row.value
    choices = take(question, "choices", list)
    record = {
        "question_id": question["question_id"],
        "image": _PICTURES[split].format(take(question, "image_id", int)),
        "text": phrase(take(question, "question", str), list_options(choices), LETTER),
        "answer": find_letter(take(question, "correct_choice_idx", int), choices),
        "choices": choices,
        "details": {name: question[name] for name in _DETAILS if name in question},
    }
    return Element(row.place, record)
