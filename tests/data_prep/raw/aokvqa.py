"""A-OKVQA in the owners' layout: a list of questions; pictures under their names of COCO 2014 and of COCO 2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack, place
from tests.data_prep.raw.wordings import LETTER

CHOICES = ("toothpick", "food", "popsicle stick", "cigarette")
QUESTION = "What is in the motorcyclist's mouth?"
MOUTH = {
    "text": f"{QUESTION}\nA. toothpick\nB. food\nC. popsicle stick\nD. cigarette\n{LETTER}",
    "answer": "D",
    "references": (),
    "choices": CHOICES,
    "details": {"direct_answers": ["cigarette"] * 10, "difficult_direct_answer": False},
}
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "val2014": {
        "22jbM6gDxdaMaunuzgrsBB": MOUTH | {"image": "images/COCO2014/val2014/COCO_val2014_000000461751.jpg"},
        "2Aq5RiEn7eyfWjEbpuYy6o": {"answer": "A", "image": "images/COCO2014/val2014/COCO_val2014_000000000042.jpg"},
    },
    "val2017": {
        "22jbM6gDxdaMaunuzgrsBB": MOUTH | {"image": "images/COCO2017/val2017/000000461751.jpg"},
        "2Aq5RiEn7eyfWjEbpuYy6o": {"answer": "A", "image": "images/COCO2017/val2017/000000000042.jpg"},
    },
}
REJECTED = {split: {3: "question beyond has an empty answer"} for split in EXPECTED}


def write(raw: Path) -> None:
    questions = [
        _question("22jbM6gDxdaMaunuzgrsBB"),
        _question("2Aq5RiEn7eyfWjEbpuYy6o", image_id=42, correct_choice_idx=0),
        _question("beyond", image_id=42, correct_choice_idx=4),
    ]
    (raw / "AOKVQA").mkdir(parents=True)
    (raw / "AOKVQA/aokvqa_v1p0_val.json").write_text(json.dumps(questions))
    pack(raw / "COCO2014/val2014.zip", [f"val2014/COCO_val2014_{number:012d}.jpg" for number in (461751, 42)])
    place(raw / "val2017", [f"{number:012d}.jpg" for number in (461751, 42)])


def _question(question_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "split": "val",
        "image_id": 461751,
        "question_id": question_id,
        "question": QUESTION,
        "choices": list(CHOICES),
        "correct_choice_idx": 3,
        "direct_answers": ["cigarette"] * 10,
        "difficult_direct_answer": False,
        "rationales": ["He's smoking while riding."] * 3,
    } | fields
