"""IconQA in the owners' layout: problems of three sub-tasks, their splits, and the archive that holds the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack
from tests.data_prep.raw.wordings import LETTER, SHORT

FOLDER = "IconQA/iconqa_data"
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "train": {"1": {"answer": "1"}, "2": {"answer": "5"}},
    "val": {
        "10": {
            "image": f"images/{FOLDER}/iconqa/val/choose_txt/10/image.png",
            "text": f"How many squares are there?\n0. 72\n1. 71\n2. 63\n{LETTER}",
            "answer": "1",
            "choices": (),
            "category": "choose_txt",
            "details": {"grade": "grade1", "label": "S2", "options": ["72", "71", "63"]},
        },
        "11": {"answer": "0"},
        "93589": {
            "image": f"images/{FOLDER}/iconqa/val/fill_in_blank/93589/image.png",
            "text": f"How many squares are there?\n{SHORT}",
            "answer": "5",
            "category": "fill_in_blank",
            "details": {"grade": "grade1", "label": "S2"},
        },
    },
    "test": {"20": {"image": f"images/{FOLDER}/iconqa/test/fill_in_blank/20/image.png"}},
}
REJECTED = {
    "val": {
        4: "question 13 has an empty answer",
        5: "question 14 has an empty answer",
        6: f"{FOLDER}/iconqa/val/choose_txt/15/image.png does not exist",
    },
}


def write(raw: Path) -> None:
    problems = {
        "1": _choose("train"),
        "2": _fill_in("train"),
        "10": _choose("val"),
        "11": _choose("val", answer="0"),  # as text
        "12": _choose("val", ques_type="choose_img", choices=["choice_0.png", "choice_1.png"]),
        "93589": _fill_in("val"),
        "13": _choose("val", answer=3),
        "14": _fill_in("val", answer=""),
        "15": _choose("val"),
        "20": _fill_in("test"),
    }
    splits: dict[str, list[str]] = {"minitrain": ["1"]}
    for pid, problem in problems.items():
        splits.setdefault(f"{problem['ques_type']}_{problem['split']}", []).append(pid)
    (raw / FOLDER).mkdir(parents=True)
    (raw / FOLDER / "problems.json").write_text(json.dumps(problems))
    (raw / FOLDER / "pid_splits.json").write_text(json.dumps(splits))
    folders = [f"{one['split']}/{one['ques_type']}/{pid}" for pid, one in problems.items() if pid != "15"]
    pictures = [f"iconqa_data/iconqa/{folder}/image.png" for folder in folders]
    pack(raw / f"{FOLDER}.zip", pictures, [f"iconqa_data/iconqa/{folder}/data.json" for folder in folders])


def _choose(split: str, **fields: Any) -> dict[str, Any]:
    return {
        "question": "How many squares are there?",
        "choices": ["72", "71", "63"],
        "answer": 1,
        "ques_type": "choose_txt",
        "grade": "grade1",
        "label": "S2",
        "split": split,
    } | fields


def _fill_in(split: str, **fields: Any) -> dict[str, Any]:
    problem = _choose(split, answer="5", ques_type="fill_in_blank") | fields
    del problem["choices"]
    return problem
