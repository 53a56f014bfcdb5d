"""OCR-VQA as its owners publish it: questions on the covers of books, in one file; covers by their addresses.

A question is a row here, about 801,600 of train and 100,400 of test. The published test file has about as many rows;
its ids are said to be those of books, and here each question has its number behind the book's id. The published
training file is said to have 165,348 rows, a dialogue of all questions for every cover.

A cover is named by its book's id and the suffix of its address, as in the owners' script. Copies may name all of them
.jpg: then the 901 of 207,572 with another suffix, which are said to hold no cover, count as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import map_rows, take
from data_prep.templates import SHORT, phrase
from robustmerge.stage.json_stream import Element, iterate_members

VERSION = 1
ORIGIN = Origin(
    "OCR-VQA",
    "none stated: research",
    (
        Download(
            "OCRVQA/dataset.json",
            "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_ (by https://ocr-vqa.github.io)",
            "108 MB",
        ),
        Download(
            "OCR-VQA/images/ID.ENDING, or OCR-VQA/images.zip",
            "the addresses in dataset.json (most are dead), or the copy at https://huggingface.co/datasets/weizhiwang/"
            "llava_v15_instruction_images, ocr_vqa_images_llava_v15.zip",
            "several GB",
        ),
    ),
    "the numbers and the ids of the published rows, and how many covers can still be had",
)
_SPLITS = {"train": 1, "val": 2, "test": 3}
FILES = dict.fromkeys(_SPLITS, ("OCRVQA/dataset.json",))


def convert(split: str, dataset: Path) -> Iterator[Element]:
    """Yield the questions on the books of a split."""
    books = iterate_members(dataset, "a file of OCR-VQA")
    return chain.from_iterable(map_rows(partial(_ask, _SPLITS[split]), books, dataset))


def _ask(split: int, row: Element) -> list[Element]:
    book = row.value
    if take(book, "split", int) != split:
        return []
    questions, answers = take(book, "questions", list), take(book, "answers", list)
    if len(questions) != len(answers):  # which answer is whose is not known: all are refused
        answers = [None] * len(questions)
    shared = {
        "image": f"OCR-VQA/images/{row.key}{os.path.splitext(take(book, 'imageURL', str))[1]}",
        "details": {"title": book["title"], "author": book["authorName"], "genre": book["genre"]},
    }
    rows = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        record = {"question_id": f"{row.key}-{number}", "text": phrase(question, SHORT), "answer": answer}
        rows.append(Element(f"{row.place}, question {number}", record | shared))
    return rows
