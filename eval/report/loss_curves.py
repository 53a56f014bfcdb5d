"""The figure of how the experts were trained: the losses of all of them, and the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from eval.report.section_training import Trained
from robustmerge.stage.drawing import (
    COLOURS,
    GREY,
    GRID_COLOUR,
    INK,
    PLAIN_TEXT,
    RenderedFigure,
    format_label,
    render_figure,
)

POINTS = 600  # in a figure, over all trainings
FEWEST_POINTS = 20  # of a training; if there is no room for them, only its line is drawn
VERTICES = 100  # of a line
LINES = ("-", (0, (4, 1.5)), ":")  # of experts with one colour
SMOOTHED = 20  # a line is the mean over this part of a run


def draw_losses(trained: Sequence[Trained]) -> RenderedFigure:
    """Draw the losses of all trainings over the share of their steps, a panel for each point; learning rates below."""
    panels = list(dict.fromkeys(one.point for one in trained))
    looks = _choose_looks(trained)
    room = POINTS // sum(len(one.trainings) for one in trained)
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(max(10.0, 4.0 * len(panels) + 2.4), 5.6), layout="constrained")
        shape = {"height_ratios": [4, 1]}
        above, below = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, gridspec_kw=shape)
        for point, losses, rates in zip(panels, above, below, strict=True):
            here = [one for one in trained if one.point == point]
            for one in here:
                _draw_expert(losses, one, looks[one.label], room)
            for schedule in dict.fromkeys(training.learning_rates for one in here for training in one.trainings):
                rates.plot(*_thin(schedule, VERTICES), color=GREY, lw=1)
            heading = format_label(point[:1].upper() + point[1:])
            losses.set_title(heading, loc="left", fontweight="bold", fontsize=11, color=INK)
            _set_scale(losses)
            losses.set_xlim(0, 100)
            rates.set_xlabel("Share of the steps (%)")
            rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            for axes in (losses, rates):
                axes.grid(color=GRID_COLOUR, lw=0.8)
                axes.set_axisbelow(True)
        above[0].set_ylabel("Loss")
        below[0].set_ylabel("Learning rate")
        handles = [Line2D([], [], label=format_label(label), **look) for label, look in looks.items()]
        figure.legend(handles=handles, loc="outside right upper")
        alt = "Loss of every training over the share of its steps, and below it the learning rate"
        return render_figure(figure, "losses", alt, wide=True)


def _choose_looks(trained: Sequence[Trained]) -> dict[str, dict[str, Any]]:
    """How the lines of each label are drawn: the multi-task model black, the second round of the colours dashed."""
    experts = list(dict.fromkeys(one.label for one in trained if one.kind == "individual"))
    looks: dict[str, dict[str, Any]] = {
        label: {"color": COLOURS[turn % len(COLOURS)], "lw": 1.3, "ls": LINES[turn // len(COLOURS) % len(LINES)]}
        for turn, label in enumerate(experts)
    }
    return looks | {one.label: {"color": INK, "lw": 1.3, "ls": "-"} for one in trained if one.kind != "individual"}


def _draw_expert(axes: Axes, one: Trained, look: dict[str, Any], room: int) -> None:
    """Draw the losses of the trainings of one expert. room: for points of each."""
    for training in one.trainings:
        if room >= FEWEST_POINTS:
            points = _thin(training.losses, room)
            axes.plot(*points, ls="none", marker="o", ms=2.2, mew=0, color=look["color"], alpha=0.35)
        axes.plot(*_thin(_smooth(training.losses), VERTICES), **look)


def _thin(values: Sequence[float], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` of the steps' values, evenly spaced: their places as a percentage of the steps, and the values."""
    steps = len(values)
    some = np.unique(np.linspace(0, steps - 1, min(steps, most)).round().astype(int))
    return 100 * (some + 1) / steps, np.array(values)[some]


def _smooth(losses: Sequence[float]) -> list[float]:
    """The mean over the steps around each, of which there are fewer at both ends."""
    reach = len(losses) // SMOOTHED // 2
    sums, places = np.concatenate([[0.0], np.cumsum(losses)]), np.arange(len(losses))
    begin, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(losses))
    return list((sums[end] - sums[begin]) / (end - begin))


def _set_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers; a loss of 0 has no place on it."""
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
