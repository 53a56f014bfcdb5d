"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's layout: an entry of `images` for every sentence, pictures of COCO 2014."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "
PICTURE, WIDE = "COCO_train2014_000000581857.jpg", "COCO_train2014_000000131074.jpg"
BOX = [280.45, 165.39, 81.98, 182.65]
SETS = (
    *("refcoco_train", "refcoco_val", "refcoco_testA", "refcoco_testB"),
    *("refcoco+_train", "refcoco+_val", "refcoco+_testA", "refcoco+_testB"),
    *("refcocog_train", "refcocog_val", "refcocog_test"),
)
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {f"{name}_0": {} for name in SETS if name.endswith("train")},
    "test": {
        "refcoco_val_0": {
            "image": f"images/COCO2014/train2014/{PICTURE}",
            "text": f"{QUESTION}the lady with the blue shirt",
            "answer": "[0.6,0.26,0.73,0.54]",
            "size": (427, 640),
            "category": "refcoco val",
            "details": {"box": BOX, "dataset": "refcoco", "split": "val"},
        },
        "refcoco_val_1": {"text": f"{QUESTION}guyin blue", "answer": "[0.6,0.26,0.73,0.54]"},
        "refcoco_testA_0": {"category": "refcoco testA"},
        "refcoco_testB_0": {"answer": "[0.0,0.12,1.0,0.88]", "size": (640, 480), "category": "refcoco testB"},
        "refcoco+_val_0": {"category": "refcoco+ val"},
        "refcoco+_testA_0": {"category": "refcoco+ testA"},
        "refcoco+_testB_0": {"category": "refcoco+ testB"},
        "refcocog_val_0": {"category": "refcocog val"},
        "refcocog_test_0": {"category": "refcocog test", "answer": "[0.6,0.26,0.73,0.54]"},
    },
}
REJECTED = {
    "test": {
        3: "field 'answer_bbox' must be text or a number, got []",
        4: "field 'answer_bbox' must be text or a number, got [[1, 2, 3, 4], [5, 6, 7, 8]]",
        5: "field 'answer_bbox' must be text or a number, got [[1, 2, 0, 4]]",
        6: "COCO_train2014_000000000001.jpg does not exist",
    },
}


def write(raw: Path) -> None:
    odd = [
        _sentence("guyin blue"),
        _sentence("without a box"),
        _sentence("with two boxes"),
        _sentence("with a flat box"),
        _sentence("without a picture") | {"file_name": "COCO_train2014_000000000001.jpg"},
    ]
    boxes = [[BOX], [BOX], [], [[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 0, 4]], [BOX]]
    (raw / "Grounding").mkdir(parents=True)
    for name in SETS:
        one = _sentence("the lady with the blue shirt")
        if name == "refcoco_val":
            _write(raw, name, [one, *odd], boxes)
        elif name == "refcoco_testB":
            _write(raw, name, [one | {"file_name": WIDE, "width": 640, "height": 480}], [[[0, 0, 640, 480]]])
        else:
            _write(raw, name, [one], [[BOX]])
    sizes = {f"train2014/{PICTURE}": (427, 640), f"train2014/{WIDE}": (640, 480)}
    pack(raw / "COCO2014/train2014.zip", sizes, sizes=sizes)


def _sentence(caption: str) -> dict[str, Any]:
    return {"file_name": PICTURE, "height": 640, "width": 427, "original_id": 581857, "caption": caption}


def _write(raw: Path, name: str, sentences: list[dict[str, Any]], boxes: list[list[list[float]]]) -> None:
    images = [one | {"id": number, "dataset_name": name.split("_")[0]} for number, one in enumerate(sentences)]
    annotations = [
        {"area": 1.0, "iscrowd": 0, "image_id": number, "category_id": 1, "bbox": box, "tokens_positive": [[0, 4]]}
        for number, own in enumerate(boxes)
        for box in own
    ]
    annotations = [one | {"id": number} for number, one in enumerate(annotations)]
    content = {"info": [], "licenses": [], "images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (raw / f"Grounding/finetune_{name}.json").write_text(json.dumps(content))
