"""Flickr30k with its five captions a picture, in Karpathy's split, as the Hub's nlphuji/flickr30k has it.

To evaluate, a picture of `val` (1,014) or `test` (1,000) is a question with five references; to train, every caption of
the 29,000 pictures of `train` is one. The published val_brief.json is the benchmark authors' selection, not known to be
`val`, so scores on it and on these rows are not comparable. The published train_brief, some 40,000 captions, is a
selection too: where its pictures are in `train`, its rows are among those here.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

from data_prep.origin import Download, Origin
from data_prep.release_rows import map_rows, take
from data_prep.templates import CAPTION
from robustmerge.stage.files import parse_json, read_text
from robustmerge.stage.json_stream import Element
from robustmerge.stage.settings import UserError

VERSION = 1
ORIGIN = Origin(
    "Flickr30k",
    "Flickr's terms of use: research, not commercial",
    (
        Download(
            "Flickr30k/flickr_annotations_30k.csv, Flickr30k/flickr30k-images.zip",
            "https://huggingface.co/datasets/nlphuji/flickr30k",
            "4.4 GB",
            hub="nlphuji/flickr30k",
            patterns=("flickr_annotations_30k.csv", "flickr30k-images.zip"),
            place="Flickr30k",
        ),
    ),
    "the table itself (its columns are from its loader), and which pictures and captions the published files have",
)
FILES = dict.fromkeys(("train", "val", "test"), ("Flickr30k/flickr_annotations_30k.csv",))


def convert(split: str, captions: Path) -> Iterator[Element]:
    """Yield a question for every caption of `train`, for every picture of another split."""
    return itertools.chain.from_iterable(map_rows(partial(_ask, split), _list(captions), captions))


def _list(path: Path) -> Iterator[Element]:
    table = csv.DictReader(io.StringIO(read_text(path, "captions of Flickr30k"), newline=""))
    try:
        for number, row in enumerate(table, start=1):
            yield Element(f"row {number}", row)
    except csv.Error as error:
        raise UserError(f"{path}, line {table.reader.line_num}: {error}") from error


def _ask(split: str, row: Element) -> list[Element]:
    """The questions about a picture; none if it is of another split."""
    if take(row.value, "split", str) != split:
        return []
    name = take(row.value, "filename", str)
    captions = take({"raw": parse_json(take(row.value, "raw", str))}, "raw", list)
    captions = [caption for caption in captions if caption.strip()]
    question = {"image": f"Flickr30k/flickr30k-images/{name}", "text": CAPTION}
    if split != "train":
        answers = {"answer": next(iter(captions), ""), "references": captions}
        return [Element(row.place, {"question_id": PurePath(name).stem, **question, **answers})]
    return [
        # Numbered as in the owners' token file: `1000092795.jpg#0`.
        Element(f"{row.place}, caption {number}", {"question_id": f"{name}#{number}", **question, "answer": caption})
        for number, caption in enumerate(captions)
    ]
