"""ScienceQA in the owners' layout: problems, with and without a picture or a hint, and their splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack, place
from tests.data_prep.raw.wordings import LETTER

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "1": {
            "image": "images/ScienceQA/images/train/1/image.png",
            "text": f"Which of these states is farthest north?\nA. West Virginia\nB. Louisiana\n{LETTER}",
            "answer": "A",
            "choices": ("West Virginia", "Louisiana"),
            "category": "social science",
        },
        "2": {"image": None},
    },
    "val": {"3": {"image": "images/ScienceQA/images/val/3/image.png"}},
    "test": {
        "4": {
            "image": "images/ScienceQA/images/test/4/image.png",
            "text": f"Context: Figure: Andes.\nWhich is true?\nA. It is high.\nB. It is low.\nC. Both.\n{LETTER}",
            "answer": "C",
            "category": "natural science",
            "details": {
                "split": "test",
                "subject": "natural science",
                "topic": "geography",
                "category": "Geography",
                "skill": "Read a map: cardinal directions",
                "grade": "grade2",
            },
        },
        "5": {
            "image": None,
            "text": f"Which of these states is farthest north?\nA. West Virginia\nB. Louisiana\n{LETTER}",
            "answer": "B",
        },
    },
}
REJECTED = {
    "test": {3: "question 11 has an empty answer", 4: "ScienceQA/images/test/16/image.png does not exist"},
}


def write(raw: Path) -> None:
    problems = {
        "1": _problem("train"),
        "2": _problem("train", image=None),
        "3": _problem("val"),
        "4": _problem(
            "test",
            question="Which is true?",
            choices=["It is high.", "It is low.", "Both."],
            answer=2,
            hint="Figure: Andes.",
            subject="natural science",
        ),
        "5": _problem("test", image=None, answer=1),
        "11": _problem("test", image=None, answer=2),
        "16": _problem("test"),
        "99": _problem("test"),  # of no list
    }
    splits = {"train": ["1", "2"], "val": ["3"], "test": ["4", "5", "11", "16"], "minitest": ["4"]}
    (raw / "ScienceQA").mkdir(parents=True)
    (raw / "ScienceQA/problems.json").write_text(json.dumps(problems))
    (raw / "ScienceQA/pid_splits.json").write_text(json.dumps(splits))
    place(raw / "ScienceQA/images/train", ["1/image.png"])
    pack(raw / "ScienceQA/images/val.zip", ["val/3/image.png"])
    pack(raw / "ScienceQA/images/test.zip", ["test/4/image.png", "test/4/choice_0.png"])


def _problem(split: str, **fields: Any) -> dict[str, Any]:
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.",
        "solution": "To find the answer, look at the compass rose.",
        "split": split,
    } | fields
