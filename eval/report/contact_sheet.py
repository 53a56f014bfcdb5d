"""The contact sheet of a report: test pictures with question and answer, one band for each task."""

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
from eval.report.examples import format_question, read_pixels
from eval.settings import Task
from robustmerge.stage.drawing import GREY, INK, PLAIN_TEXT
from robustmerge.stage.records import read_examples
from robustmerge.stage.text import plain

PICTURES_A_TASK = 6
DPI = 110
RIGHT = "#1a7f37"
PICTURE, GAP, MARGIN, LINE = 1.55, 0.32, 1.45, 0.13  # inches; the margin holds the names of the tasks
QUESTION_LINES, ANSWER_LINES = 6, 2
LETTERS, BOLD_LETTERS = 31, 27  # a line
NAME_LINES, NAME_LETTERS = 6, 13


@dataclass(frozen=True)
class Tile:
    """A picture with its question and answer, cut into lines. pixels: None if there is no picture."""

    pixels: np.ndarray | None
    question: list[str]
    answer: list[str]

    @property
    def height(self) -> float:
        return PICTURE + LINE * (len(self.question) + len(self.answer)) + 0.36


def draw_contact_sheet(question_files: Sequence[tuple[Task, Path]]) -> bytes | None:
    """Draw the sheet as PNG, with the questions of smallest sha256 of their id; None if no task has a question file."""
    bands = [(task, _read_tiles(path)) for task, path in question_files]
    if not bands:
        return None
    heights = [max((tile.height for tile in tiles), default=PICTURE) for _, tiles in bands]
    width, height = MARGIN + PICTURES_A_TASK * (PICTURE + GAP), sum(heights)
    with matplotlib.rc_context({**PLAIN_TEXT, "font.size": 7.5}):
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        for (task, tiles), top in zip(bands, np.cumsum([0, *heights[:-1]]), strict=True):
            _draw_band(axes, float(top), width, task, tiles)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _read_tiles(path: Path) -> list[Tile]:
    tiles = []
    for example in first_by_hash(read_examples(path), PICTURES_A_TASK):
        question, expected = format_question(example)
        answer = _wrap(f"→ {expected}", ANSWER_LINES, BOLD_LETTERS)
        tiles.append(Tile(read_pixels(path.parent, example.image), _wrap(question, QUESTION_LINES, LETTERS), answer))
    return tiles


def _draw_band(axes: Axes, top: float, width: float, task: Task, tiles: Sequence[Tile]) -> None:
    """Draw one task: its name on the left, then columns of picture, question and answer."""
    if top:
        axes.plot([0.1, width - 0.1], [top, top], color="#d8dee4", lw=0.8)
    name = _wrap(task.title, NAME_LINES, NAME_LETTERS)
    axes.text(0.12, top + 0.18, "\n".join(name), size=10.5, weight="bold", color=INK, va="top")
    below = top + 0.22 + 0.17 * len(name)
    split = "seen" if task.seen else "general" if task.general else "unseen"
    axes.text(0.12, below, split, size=8, color=GREY, va="top")
    for place, tile in enumerate(tiles):
        _draw_tile(axes, MARGIN + place * (PICTURE + GAP), top + 0.14, tile)


def _draw_tile(axes: Axes, left: float, top: float, tile: Tile) -> None:
    if tile.pixels is None:
        axes.text(left, top + 0.05, "(no picture)", color=GREY, va="top", style="italic")
    else:
        scale = PICTURE / max(tile.pixels.shape[:2])
        down, across = scale * tile.pixels.shape[0], scale * tile.pixels.shape[1]
        extent = (left, left + across, top + down, top)
        axes.imshow(tile.pixels, extent=extent, aspect="auto", interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        axes.add_patch(Rectangle((left, top), across, down, fill=False, edgecolor="#d8dee4", lw=0.8))
    below = top + PICTURE + 0.06
    axes.text(left, below, "\n".join(tile.question), color=INK, va="top", linespacing=1.15)
    below += LINE * len(tile.question) + 0.02
    axes.text(left, below, "\n".join(tile.answer), color=RIGHT, weight="bold", va="top", linespacing=1.15)


def _wrap(text: str, most: int, letters: int) -> list[str]:
    """Wrap a text into at most `most` lines; of a long one only the beginning is looked at."""
    return textwrap.wrap(plain(text[: 20 * most * letters]), letters, max_lines=most, placeholder=" …")
