"""TabMWP in the owners' layout: an object of problems by their number, and the pictures of the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack
from tests.data_prep.raw.wordings import SHORT

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "test": {
        "16": {
            "text": f"What is the mean of the numbers?\n{SHORT}",
            "answer": "84",
            "choices": (),
            "image": "images/TabMWP/tables/16.png",
            "category": "free_text",
            "details": {"unit": None, "ques_type": "free_text", "ans_type": "integer_number", "grade": 5},
        },
        "3": {
            "text": f"How much does Ann need? (unit: $)\n{SHORT}",
            "answer": "1,234.50",
            "details": {"unit": "$", "ques_type": "free_text", "ans_type": "decimal_number", "grade": 5},
        },
        "20": {
            "text": f"Is there a surplus or a shortage?\nA. shortage\nB. surplus\n{SHORT}",
            "answer": "surplus",
            "choices": ("shortage", "surplus"),
            "category": "multi_choice",
        },
    },
    "test1k": {"16": {"answer": "84"}},
}
REJECTED = {"test": {4: "question 21 has an empty answer"}}


def write(raw: Path) -> None:
    problems = {
        "16": _problem("What is the mean of the numbers?", "84", ans_type="integer_number"),
        "3": _problem("How much does Ann need?", "1,234.50", unit="$", ans_type="decimal_number"),
        "20": _problem(
            "Is there a surplus or a shortage?",
            "surplus",
            choices=["shortage", "surplus"],
            ques_type="multi_choice",
            ans_type="extractive_text",
        ),
        "21": _problem("What is left?", " ", ans_type="other_text"),
    }
    (raw / "TabMWP").mkdir(parents=True)
    (raw / "TabMWP/problems_test.json").write_text(json.dumps(problems))
    (raw / "TabMWP/problems_test1k.json").write_text(json.dumps({"16": problems["16"]}))
    pack(raw / "TabMWP/tables.tar", [f"tables/{number}.png" for number in problems])


def _problem(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {
        "question": question,
        "choices": None,
        "answer": answer,
        "unit": None,
        "table_title": "Coin collections",
        "table": "Name | Number of coins\nBraden | 76",
        "table_for_pd": {"Name": ["Braden"], "Number of coins": ["76"]},
        "row_num": 2,
        "column_num": 2,
        "solution": "Read the table.",
        "ques_type": "free_text",
        "grade": 5,
        "split": "test",
    } | fields
