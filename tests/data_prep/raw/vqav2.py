"""VQAv2 in the owners' layout: questions, ten answers each in another file, pictures of COCO 2014."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack, place
from tests.data_prep.raw.wordings import SHORT

TEN = ("net", "net", "net", "netting", "net", "Net ", "mesh", "net", "a net", "net")
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train2014": {"9000": {"image": "images/COCO2014/train2014/COCO_train2014_000000000009.jpg", "answer": "yes"}},
    "val2014": {
        "458752000": {
            "image": "images/COCO2014/val2014/COCO_val2014_000000458752.jpg",
            "text": f"What is this photo taken looking through?\n{SHORT}",
            "answer": "net",
            "references": TEN,
            "category": "other",
            "details": {"question_type": "what is this"},
        },
        "458752001": {"image": "images/COCO2014/val2014/COCO_val2014_000000458752.jpg", "answer": "2"},
        "42000": {"image": "images/COCO2014/val2014/COCO_val2014_000000000042.jpg"},
    },
}
REJECTED = {
    "val2014": {
        4: "question 42001 has an empty answer",
        5: "COCO2014/val2014/COCO_val2014_000000000043.jpg does not exist",
    },
}


def write(raw: Path) -> None:
    (raw / "VQAv2").mkdir(parents=True)
    asked = {458752000: "What is this photo taken looking through?", 458752001: "How many?", 42000: "Is it?"}
    answers = {458752000: ("net", TEN), 458752001: ("2", ["2"] * 10), 42000: ("no", ["no"] * 10)}
    _write(raw, "train2014", {9000: "Is it raining?"}, {9000: ("yes", ["yes"] * 10)})
    others = {42001: "Who has no annotation?", 43000: "What has no picture?"}
    _write(raw, "val2014", asked | others, answers | {43000: ("net", TEN)})
    place(raw / "COCO2014/train2014", ["COCO_train2014_000000000009.jpg"])
    pack(raw / "COCO2014/val2014.zip", [f"val2014/COCO_val2014_{number:012d}.jpg" for number in (458752, 42)])


def _write(raw: Path, split: str, asked: dict[int, str], answers: dict[int, tuple[str, Sequence[str]]]) -> None:
    about = {"info": {"version": "2.0"}, "license": {"name": "CC BY 4.0"}, "data_subtype": split, "data_type": "mscoco"}
    questions = [{"image_id": one // 1000, "question": text, "question_id": one} for one, text in asked.items()]
    annotations = [_annotate(question_id, *given) for question_id, given in answers.items()]
    contents = {
        f"v2_OpenEnded_mscoco_{split}_questions.json": {"task_type": "Open-Ended", **about, "questions": questions},
        f"v2_mscoco_{split}_annotations.json": {**about, "annotations": annotations},
    }
    for name, content in contents.items():
        (raw / "VQAv2" / name).write_text(json.dumps(content))


def _annotate(question_id: int, commonest: str, answers: Sequence[str]) -> dict[str, Any]:
    return {
        "question_type": "what is this",
        "multiple_choice_answer": commonest,
        "answers": [
            {"answer": answer, "answer_confidence": "maybe", "answer_id": number}
            for number, answer in enumerate(answers, start=1)
        ],
        "image_id": question_id // 1000,
        "answer_type": "other",
        "question_id": question_id,
    }
