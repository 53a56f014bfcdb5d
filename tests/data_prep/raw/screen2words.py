"""Screen2Words in the owners' layout: a table of summaries that are not quoted, and lists of screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import place

SUMMARIES = """screenId,summary
54137,page displaying the options to login
2765,settings page, with a "dark" mode
54137,"login" screen
2765,display of settings

33,of another split
777,page of a screen whose picture is lost
"""
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "test": {
        "2765": {
            "text": "You are given a phone UI screen. Describe the screen in one sentence.",
            "answer": 'settings page, with a "dark" mode',
            "references": ('settings page, with a "dark" mode', "display of settings"),
            "image": "images/Screen2words/2765.jpg",
        },
        "54137": {"references": ("page displaying the options to login", '"login" screen')},
    },
}
REJECTED = {
    "test": {
        2: "question 44654 has an empty answer",
        4: "777.jpg does not exist",
        5: "question_id is not unique: 2765 is also that of line 1",
    }
}


def write(raw: Path) -> None:
    folder = raw / "Screen2words"
    place(folder, ["2765.jpg", "44654.jpg", "54137.jpg"])
    (folder / "split").mkdir()
    (folder / "split/test_screens.txt").write_text("2765\n44654\n\n54137\n777\n2765\n")
    (folder / "screen_summaries.csv").write_text(SUMMARIES, newline="\r\n")
