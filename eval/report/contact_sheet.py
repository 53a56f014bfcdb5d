"""A sheet of test pictures, a band a task: what the tasks look like."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eval.questions import first_by_hash
from eval.report.examples import read_picture, words_of
from eval.report.figures import RC_PARAMS
from eval.report.palette import GREY, INK
from eval.report.results import Context
from eval.settings import Task
from robustmerge.stage.records import read_examples

PICTURES_A_TASK = 6
DPI = 110
RIGHT = "#1a7f37"
PICTURE, GAP, NAME, LINE = 1.55, 0.32, 1.45, 0.13  # inches
QUESTION_LINES, ANSWER_LINES = 6, 2
LETTERS, BOLD_LETTERS = 31, 27  # a line


@dataclass(frozen=True)
class _Shown:
    """One question, its words cut into lines. pixels: None if there is no picture."""

    pixels: np.ndarray | None
    asked: list[str]
    expected: list[str]

    @property
    def height(self) -> float:
        return PICTURE + LINE * (len(self.asked) + len(self.expected)) + 0.36


def draw_contact_sheet(context: Context) -> bytes | None:
    """As PNG; None if no task has a question file. Questions have the smallest sha256 of their id."""
    paths = [(task, Path(context.questions[task.name])) for task in context.tasks if task.name in context.questions]
    bands = [(task, _read(path)) for task, path in paths if path.exists()]
    if not bands:
        return None
    heights = [max((one.height for one in shown), default=PICTURE) for _, shown in bands]
    width, height = NAME + PICTURES_A_TASK * (PICTURE + GAP), sum(heights)
    with matplotlib.rc_context({**RC_PARAMS, "font.size": 7.5}):
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        for (task, shown), top in zip(bands, np.cumsum([0, *heights[:-1]]), strict=True):
            _draw_band(axes, float(top), width, task, shown)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _read(path: Path) -> list[_Shown]:
    found = []
    for example in first_by_hash(read_examples(path), PICTURES_A_TASK):
        asked, expected = words_of(example)
        pixels = read_picture(path.parent, example.image)
        found.append(
            _Shown(pixels, _wrap(asked, QUESTION_LINES, LETTERS), _wrap(f"→ {expected}", ANSWER_LINES, BOLD_LETTERS))
        )
    return found


def _draw_band(axes: Axes, top: float, width: float, task: Task, shown: Sequence[_Shown]) -> None:
    """Name on the left, then picture over question over answer."""
    if top:
        axes.plot([0.1, width - 0.1], [top, top], color="#d8dee4", lw=0.8)
    name = textwrap.wrap(task.title, 13)
    axes.text(0.12, top + 0.18, "\n".join(name), size=10.5, weight="bold", color=INK, va="top")
    below = top + 0.22 + 0.17 * len(name)
    axes.text(0.12, below, "seen" if task.seen else "unseen", size=8, color=GREY, va="top")
    for place, one in enumerate(shown):
        _draw_question(axes, NAME + place * (PICTURE + GAP), top + 0.14, one)


def _draw_question(axes: Axes, left: float, top: float, one: _Shown) -> None:
    if one.pixels is None:
        axes.text(left, top + 0.05, "(no picture)", color=GREY, va="top", style="italic")
    else:
        scale = PICTURE / max(one.pixels.shape[:2])
        down, across = scale * one.pixels.shape[0], scale * one.pixels.shape[1]
        extent = (left, left + across, top + down, top)
        axes.imshow(one.pixels, extent=extent, aspect="auto", interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        axes.add_patch(Rectangle((left, top), across, down, fill=False, edgecolor="#d8dee4", lw=0.8))
    below = top + PICTURE + 0.06
    axes.text(left, below, "\n".join(one.asked), color=INK, va="top", linespacing=1.15)
    below += LINE * len(one.asked) + 0.02
    axes.text(left, below, "\n".join(one.expected), color=RIGHT, weight="bold", va="top", linespacing=1.15)


def _wrap(text: str, most: int, letters: int) -> list[str]:
    """At most so many lines; a dollar begins no formula."""
    return textwrap.wrap(text.replace("$", r"\$"), letters, max_lines=most, placeholder=" …")
