"""Flickr30k as nlphuji/flickr30k has it: a table whose cells hold JSON lists, and an archive of the pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack
from tests.data_prep.raw.wordings import CAPTION

FIVE = ("Two men, in a yard.", 'A sign says "Stop".', "Zwei Männer.", "Men\nand a hedge.", "A yard .")
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "1000092795.jpg#0": {
            "answer": "A boy.",
            "references": (),
            "image": "images/Flickr30k/flickr30k-images/1000092795.jpg",
            "text": CAPTION,
        },
        "1000092795.jpg#1": {"answer": "A child, outside."},
        "10002456.jpg#0": {"answer": "Men."},
    },
    "val": {
        "1000268201": {
            "answer": FIVE[0],
            "references": FIVE,
            "image": "images/Flickr30k/flickr30k-images/1000268201.jpg",
            "text": CAPTION,
        },
    },
    "test": {"1007129816": {"answer": "A man.", "references": ("A man.", "A man with a hat.")}},
}
REJECTED = {"val": {2: "question 1000344755 has an empty answer"}}
COLUMNS = ("raw", "sentids", "split", "filename", "img_id")


def write(raw: Path) -> None:
    rows = [
        _row(["A boy.", "A child, outside."], "train", "1000092795.jpg", 0),
        _row(FIVE, "val", "1000268201.jpg", 1),
        _row(["Men."], "train", "10002456.jpg", 2),
        _row([], "val", "1000344755.jpg", 3),
        _row(["A man.", "A man with a hat."], "test", "1007129816.jpg", 4),
    ]
    pictures = [f"flickr30k-images/{row[3]}" for row in rows]
    pack(raw / "Flickr30k/flickr30k-images.zip", pictures, beside=["__MACOSX/flickr30k-images/._1000092795.jpg"])
    write_table(raw / "Flickr30k/flickr_annotations_30k.csv", COLUMNS, rows)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def _row(captions: Sequence[str], split: str, name: str, number: int) -> list[object]:
    sentids = [5 * number + index for index in range(len(captions))]
    return [json.dumps(captions, ensure_ascii=False), json.dumps(sentids), split, name, number]
