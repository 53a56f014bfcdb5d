"""VizWiz-Captions in the owners' layout: annotations/{train,val}.json; train/ is a folder, val an archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack, place
from tests.data_prep.raw.wordings import CAPTION

PRECANNED = "Quality issues are too severe to recognize visual content."
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "0": {
            "answer": "ITS IS A BASIL LEAVES CONTAINER.",
            "image": "images/VizWiz/train/VizWiz_train_00000000.jpg",
            "text": CAPTION,
            "details": {"text_detected": True},
        },
        "2": {"answer": "A green jar.", "image": "images/VizWiz/train/VizWiz_train_00000000.jpg"},
        "6": {"answer": "A dog.", "details": {"text_detected": False}},
    },
    "val": {
        "23431": {
            "answer": "A screen, blue.",
            "references": ("A screen, blue.", "A computer screen"),
            "image": "images/VizWiz/val/VizWiz_val_00000000.jpg",
            "text": CAPTION,
            "details": {"text_detected": True, "rejected": 2, "precanned": 1},
        },
        "23433": {"answer": "A cup.", "references": ("A cup.",), "details": {"rejected": 0, "precanned": 0}},
    },
}
REJECTED = {"val": {2: "question 23432 has an empty answer", 4: "VizWiz_val_00000003.jpg does not exist"}}


def write(raw: Path) -> None:
    """In train, the pictures say whether there is text in them; in val, some captions do, and they come first."""
    folder = raw / "VizWiz/annotations"
    folder.mkdir(parents=True)
    train = {
        "info": {"description": "VizWiz"},
        "images": [_picture("train", 0, 0, text_detected=True), _picture("train", 1, 1, text_detected=False)],
        "annotations": [
            _caption(0, 0, "ITS IS A BASIL LEAVES CONTAINER."),
            _caption(1, 0, "spam", is_rejected=True),
            _caption(2, 0, "A green jar."),
            _caption(5, 1, PRECANNED, is_precanned=True),
            _caption(6, 1, "A dog."),
        ],
    }
    val = {
        "info": {"description": "VizWiz"},
        "annotations": [
            _caption(0, 23431, "A screen, blue.", text_detected=False),
            _caption(1, 23431, "good", is_rejected=True, text_detected=True),
            _caption(2, 23431, PRECANNED, is_precanned=True, is_rejected=True, text_detected=True),
            _caption(3, 23432, PRECANNED, is_precanned=True),
            _caption(4, 23431, "A computer screen", text_detected=True),
            _caption(5, 23433, "A cup."),
            _caption(6, 23434, "A picture that is not there."),
        ],
        "images": [_picture("val", number, 23431 + number) for number in range(4)],
    }
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "val.json").write_text(json.dumps(val))
    place(raw / "VizWiz/train", [f"VizWiz_train_{number:08d}.jpg" for number in range(2)])
    pack(raw / "VizWiz/val.zip", [f"val/VizWiz_val_{number:08d}.jpg" for number in range(3)])


def _picture(split: str, number: int, image_id: int, **fields: bool) -> dict[str, Any]:
    name = f"VizWiz_{split}_{number:08d}.jpg"
    return {"file_name": name, "id": image_id, "vizwiz_url": f"https://vizwiz.org/{name}"} | fields


def _caption(caption_id: int, image_id: int, text: str, **fields: bool) -> dict[str, Any]:
    caption = {"caption": text, "image_id": image_id, "is_precanned": False, "is_rejected": False, "id": caption_id}
    return caption | fields
