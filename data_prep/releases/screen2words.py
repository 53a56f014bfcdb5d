"""Screen2Words as its owners publish it: five summaries of each screen of Rico, and lists of the screens of a split.

A screen of the test split (4,310) is a question with five references, in the order of the list. The published test.json
may have other screens, and its wording is not known: this one is of a benchmark of the same group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_lines, map_rows
from robustmerge.stage.json_stream import Element

VERSION = 1
ORIGIN = Origin(
    "Screen2Words",
    "CC BY 4.0",
    (
        Download(
            "Screen2words/screen_summaries.csv, Screen2words/split/test_screens.txt",
            "https://github.com/google-research-datasets/screen2words",
            "6 MB",
        ),
        Download(
            "Screen2words/*.jpg: the pictures of its folder combined/, whose name goes "
            "(tar -xf unique_uis.tar.gz --strip-components=1 -C Screen2words)",
            "https://storage.googleapis.com/crowdstf-rico-uiuc-4540/rico_dataset_v0.1/unique_uis.tar.gz",
            "6 GB",
        ),
    ),
    "the table of summaries, the layout of Rico's archive, and the published wording, screens and order",
)
FILES = {"test": ("Screen2words/split/test_screens.txt", "Screen2words/screen_summaries.csv")}
_QUESTION = "You are given a phone UI screen. Describe the screen in one sentence."


def convert(split: str, screens: Path, summaries: Path) -> Iterator[Element]:
    """Yield a question for every screen of a split. One without a summary has no answer, and is refused as such."""
    references: dict[str, list[str]] = defaultdict(list)
    for screen, summary in map_rows(_read_summary, iterate_lines(summaries, "summaries of Screen2Words"), summaries):
        references[screen] += [summary] if summary else []
    for line in iterate_lines(screens, "screens of Screen2Words"):
        screen = line.value.strip()
        record = {
            "question_id": screen,
            "image": f"Screen2words/{screen}.jpg",
            "text": _QUESTION,
            "answer": next(iter(references[screen]), ""),
            "references": references[screen],
        }
        yield Element(line.place, record)


def _read_summary(line: Element) -> tuple[str, str]:
    """A screen, and one summary of it: all after the first comma, which is not quoted as other CSV is."""
    screen, comma, summary = line.value.partition(",")
    if not comma:
        raise ValueError("expected a screen, a comma and a summary")
    return screen.strip(), summary.strip()
