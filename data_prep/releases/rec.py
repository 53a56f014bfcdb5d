"""Referring expressions (RefCOCO, RefCOCO+ and RefCOCOg) as plain JSON: the annotations that MDETR was fine-tuned on.

The owners' own files hold pickled objects, which can execute what they like when they are read, and their addresses are
dead. MDETR's have every sentence with its box; the split of RefCOCOg is UMD's.

A sentence is a question here, and its box an answer in the units of the published files: of the longer side of the
picture, padded to a square, with two decimals. Which evaluation sets the published test file mixes is not known: here
are all, 57,457 sentences, each with its set as category. The published training file is said to have about 110,000
rows, of the 321,327 sentences of train; which ones is not known. Pictures of RefCOCO's test sets occur in RefCOCOg's
training set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_list, map_rows, take
from robustmerge.stage.json_stream import Element

VERSION = 1
ORIGIN = Origin(
    "RefCOCO, RefCOCO+, RefCOCOg (MDETR's annotations)",
    "CC BY 4.0 (annotations); Flickr's terms of use (pictures)",
    (
        Download(
            "Grounding/finetune_refcoco{,+}_{val,testA,testB}.json, Grounding/finetune_refcocog_{val,test}.json",
            "https://zenodo.org/record/4729015/files/mdetr_annotations.tar.gz",
            "about 2 GB",
        ),
        Download(
            "COCO2014/train2014.zip, packed or unpacked",
            "http://images.cocodataset.org/zips/train2014.zip",
            "13 GB",
        ),
    ),
    "which sentences the published files chose, and in which order",
)
_SETS = {
    "train": ("refcoco_train", "refcoco+_train", "refcocog_train"),
    "test": (
        *("refcoco_val", "refcoco_testA", "refcoco_testB"),
        *("refcoco+_val", "refcoco+_testA", "refcoco+_testB"),
        *("refcocog_val", "refcocog_test"),
    ),
}
FILES = {split: tuple(f"Grounding/finetune_{name}.json" for name in names) for split, names in _SETS.items()}
_KIND = "a file of MDETR's annotations"
_QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "


def convert(split: str, *files: Path) -> Iterator[Element]:
    """Yield the sentences of all sets of a split. A sentence without exactly one box, of some size, is refused."""
    for name, file in zip(_SETS[split], files, strict=True):
        boxes: dict[int, list[list[float]]] = defaultdict(list)  # by the id of their sentence
        for sentence, box in map_rows(_read_box, iterate_list(file, "annotations", _KIND), file):
            boxes[sentence].append(box)
        yield from map_rows(partial(_ask, name, boxes, file), iterate_list(file, "images", _KIND), file)


def format_box(box: list[float], width: int, height: int) -> str:
    """A box [x, y, w, h] in pixels by its corners, in units of the longer side of the picture padded to a square.

    >>> format_box([280.45, 165.39, 81.98, 182.65], 427, 640)
    '[0.6,0.26,0.73,0.54]'
    """
    side = max(width, height)
    left, top, across, down = box
    left, top = left + (side - width) / 2, top + (side - height) / 2
    corners = (left, top, left + across, top + down)
    return f"[{','.join(str(round(value / side, 2)) for value in corners)}]"


def _ask(name: str, boxes: dict[int, list[list[float]]], file: Path, row: Element) -> Element:
    """MDETR calls a sentence an image: a picture has an entry for every sentence on it."""
    sentence = row.value
    dataset, split = name.split("_")
    size = take(sentence, "width", int), take(sentence, "height", int)
    number = take(sentence, "id", int)
    own = boxes[number]
    is_clear = len(own) == 1 and min(own[0][2:]) > 0
    record = {
        "question_id": f"{name}_{number}",
        "image": f"COCO2014/train2014/{take(sentence, 'file_name', str)}",
        "text": f"{_QUESTION}{take(sentence, 'caption', str)}",
        "answer_bbox": format_box(own[0], *size) if is_clear else own,
        "size": list(size),
        "category": f"{dataset} {split}",
        "details": {"box": own[0] if is_clear else None, "dataset": dataset, "split": split},
    }
    return Element(row.place, record, file=file)


def _read_box(row: Element) -> tuple[int, list[float]]:
    return take(row.value, "image_id", int), take(row.value, "bbox", list)
