"""The figure of how strengths were chosen: every method's mean val score against multiples of its default update."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.report.figures import style_mark
from eval.report.palette import Style, assign_styles
from eval.report.results import ResultGroup
from eval.report.tables import Table
from robustmerge.stage.drawing import GRID_COLOUR, INK, PLAIN_TEXT, RenderedFigure, format_label, render_figure

LEGEND_COLUMNS = 4


def draw_strengths(groups: Sequence[ResultGroup], main: Table) -> RenderedFigure | None:
    """Draw a curve a method: the mean over seeds, a band from the lowest seed to the highest, a mark where it is best.

    main: the main table, of these groups. None where no strength was chosen.
    """
    styles = dict(zip((row.title for row in main.rows), assign_styles(main.rows), strict=True))
    chosen = [group for group in groups if group.first.choice is not None]
    facets = list(dict.fromkeys(group.first.facet for group in chosen))
    if not chosen:
        return None
    labels = dict.fromkeys(group.label for group in chosen)
    with matplotlib.rc_context(PLAIN_TEXT):
        size = (max(7.6, 5.0 * len(facets)), 4.6 + 0.3 + 0.21 * -(-(len(labels) + 1) // LEGEND_COLUMNS))
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(1, len(facets), sharey=True, squeeze=False)[0]
        for axes, facet in zip(all_axes, facets, strict=True):
            for group in (group for group in chosen if group.first.facet == facet):
                _draw_curve(axes, group, styles[group.title])
            axes.set_title(facet[:1].upper() + facet[1:], loc="left", fontweight="bold", fontsize=11, color=INK)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.set_xlabel("Multiple of the method's default update")
            axes.grid(color=GRID_COLOUR, lw=0.8)
            axes.set_axisbelow(True)
        all_axes[0].set_ylabel("Mean val score over the seen tasks (%)")
        by_label = {group.label: styles[group.title] for group in chosen}
        handles = [Line2D([], [], label=format_label(label), **style_mark(by_label[label])) for label in labels]
        handles.append(Line2D([], [], label="chosen", marker="o", ms=10, mfc="none", color=INK, ls="none"))
        figure.legend(handles=handles, loc="outside lower left", alignment="left", ncols=LEGEND_COLUMNS)
        alt = "Mean val score of every method against the multiple of its default update"
        return render_figure(figure, "strengths", alt, wide=len(facets) > 1)


def _draw_curve(axes: Axes, group: ResultGroup, style: Style) -> None:
    choices = [result.choice for result in group.results if result.choice is not None]
    factors = sorted(set.intersection(*(set(choice.means) for choice in choices)))
    scores = np.array([[choice.means[factor] for factor in factors] for choice in choices])  # [seeds, factors]
    axes.fill_between(factors, scores.min(0), scores.max(0), color=style.colour, alpha=0.12, lw=0)
    axes.plot(factors, scores.mean(0), lw=1.2, **{**style_mark(style), "ls": "-", "ms": 4})
    for choice in choices:
        best = (choice.factor, choice.means[choice.factor])
        axes.plot(*best, marker="o", ms=10, mfc="none", color=style.colour, ls="none")
