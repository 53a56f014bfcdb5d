"""OCR-VQA in the owners' layout: one file of books of all splits, covers under the names of the owners' script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import place
from tests.data_prep.raw.wordings import SHORT

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {"761183272-1": {"answer": "Sandra Boynton"}, "761183272-2": {"answer": "No"}},
    "val": {"1400046106-1": {"image": "images/OCR-VQA/images/1400046106.png"}},
    "test": {
        "002652449X-1": {
            "image": "images/OCR-VQA/images/002652449X.jpg",
            "text": f"Who wrote this book?\n{SHORT}",
            "answer": "Émile Zola",
            "details": {"title": "Germinal", "author": "Émile Zola", "genre": "Literature & Fiction"},
        },
        "002652449X-2": {
            "image": "images/OCR-VQA/images/002652449X.jpg",
            "text": f"Is this a games related book?\n{SHORT}",
            "answer": "No",
        },
        "0000000035-1": {"image": "images/OCR-VQA/images/0000000035.gif"},
    },
}
REJECTED = {
    "test": {
        3: "question 002652449X-3 has an empty answer",
        5: "field 'answer' must be text or a number, got null",
        6: "field 'answer' must be text or a number, got null",
        7: "OCR-VQA/images/0316769487.jpg does not exist",
        8: "OCR-VQA/images/0316769488 does not exist",
    },
}
SHOP = "http://ecx.images-amazon.com/images/I"


def write(raw: Path) -> None:
    one, two = {"Who wrote this book?": "Émile Zola"}, {"Is this a games related book?": "No"}
    books = {
        "761183272": _book(1, {"Who wrote this book?": "Sandra Boynton"} | two),
        "1400046106": _book(2, one, imageURL=f"{SHOP}/51.png"),
        "002652449X": _book(3, one | two | {"What is the year?": ""}),
        "0000000035": _book(3, one, imageURL=f"{SHOP}/01.gif"),
        "unequal": _book(3, one | two, answers=["No"]),
        "0316769487": _book(3, one),
        "0316769488": _book(3, one, imageURL=""),
    }
    (raw / "OCRVQA").mkdir(parents=True)
    (raw / "OCRVQA/dataset.json").write_text(json.dumps(books))
    names = ("761183272.jpg", "1400046106.png", "002652449X.jpg", "0000000035.gif", "unequal.jpg")
    place(raw / "OCR-VQA/images", names)


def _book(split: int, asked: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {
        "imageURL": f"{SHOP}/61Y5cOdHJbL.jpg",
        "questions": list(asked),
        "answers": list(asked.values()),
        "title": "Germinal",
        "authorName": "Émile Zola",
        "genre": "Literature & Fiction",
        "split": split,
    } | fields
