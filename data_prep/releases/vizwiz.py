"""VizWiz-Captions as its owners publish it: five captions a picture, some of them precanned or rejected.

To evaluate, a picture is a question, and its references are the captions that are neither, as in the owners' own
evaluation. A picture without any is refused: 208 of the 7,750 of val, as a user of the data counts. To train, each of
these captions is a question. The published val_coco_type.json may keep all five, so that scores on it and on these rows
are not comparable before that is known. The published training rows are a choice of the authors, in an order of their
own: here are all that they can have chosen from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_list, map_rows, take
from data_prep.templates import CAPTION
from robustmerge.stage.json_stream import Element
from robustmerge.stage.settings import UserError, first_few

VERSION = 1
ORIGIN = Origin(
    "VizWiz-Captions",
    "CC BY 4.0",
    (
        Download(
            "VizWiz/annotations/{train,val}.json",
            "https://vizwiz.cs.colorado.edu/VizWiz_final/caption/annotations.zip",
            "about 10 MB",
        ),
        Download(
            "VizWiz/{train,val}.zip",
            "https://vizwiz.cs.colorado.edu/VizWiz_final/images/train.zip, "
            "https://vizwiz.cs.colorado.edu/VizWiz_final/images/val.zip",
            "about 13 GB",
        ),
    ),
    "the sizes of the downloads, whether text_detected is said of pictures or of captions, and which captions the "
    "published files keep",
)
# The folder stays: a published question file may lie at VizWiz/val.json.
FILES = {split: (f"VizWiz/annotations/{split}.json",) for split in ("train", "val")}
_KIND = "captions of VizWiz"


class _Caption(NamedTuple):
    """What the owners say of a caption. text_detected: whether there is text in its picture; None: they do not say."""

    caption_id: int
    image_id: int
    text: str
    is_rejected: bool
    is_precanned: bool
    text_detected: bool | None

    @property
    def is_usable(self) -> bool:
        return not (self.is_rejected or self.is_precanned)


def convert(split: str, annotations: Path) -> Iterator[Element]:
    """Yield a question for every usable caption of `train`, for every picture of `val`.

    A picture without a usable caption has no answer, and is refused as such.
    """
    return _iterate_captions(annotations) if split == "train" else _iterate_pictures(split, annotations)


def _iterate_captions(path: Path) -> Iterator[Element]:
    pictures = dict(
        map_rows(lambda row: (take(row.value, "id", int), row.value), iterate_list(path, "images", _KIND), path)
    )

    def ask(row: Element) -> Element | None:
        caption = _read_caption(row)
        if not caption.is_usable:
            return None
        if caption.image_id not in pictures:
            raise ValueError(f"a caption of a picture that is not listed, with the id {caption.image_id}")
        question = _ask("train", caption.caption_id, pictures[caption.image_id], [caption])
        return Element(row.place, question | {"answer": caption.text})

    return (row for row in map_rows(ask, iterate_list(path, "annotations", _KIND), path) if row is not None)


def _iterate_pictures(split: str, path: Path) -> Iterator[Element]:
    captions = defaultdict(list)
    for caption in map_rows(_read_caption, iterate_list(path, "annotations", _KIND), path):
        captions[caption.image_id].append(caption)

    def ask(row: Element) -> Element:
        of_it = captions.pop(take(row.value, "id", int), [])
        question = _ask(split, row.value["id"], row.value, of_it)
        question["details"] |= {
            "rejected": sum(caption.is_rejected for caption in of_it),
            "precanned": sum(caption.is_precanned for caption in of_it),
        }
        references = [caption.text for caption in of_it if caption.is_usable]
        return Element(row.place, question | {"answer": next(iter(references), ""), "references": references})

    yield from map_rows(ask, iterate_list(path, "images", _KIND), path)
    if captions:
        unknown = ", ".join(first_few(list(map(str, captions))))
        raise UserError(f"{path}: captions of pictures that are not listed, with the ids {unknown}")


def _read_caption(row: Element) -> _Caption:
    caption = row.value
    return _Caption(
        take(caption, "id", int),
        take(caption, "image_id", int),
        take(caption, "caption", str),
        bool(take(caption, "is_rejected", int)),  # a bool is one; a text `false` would be true
        bool(take(caption, "is_precanned", int)),
        caption.get("text_detected"),
    )


def _ask(split: str, question_id: int, picture: dict[str, Any], captions: Sequence[_Caption]) -> dict[str, Any]:
    """A question about a picture, without its answers."""
    detected = {picture.get("text_detected"), *(caption.text_detected for caption in captions)} - {None}
    return {
        "question_id": question_id,
        "image": f"VizWiz/{split}/{take(picture, 'file_name', str)}",
        "text": CAPTION,
        "details": {"text_detected": any(detected)} if detected else {},
    }
