"""Figures of curves: scores and ranks against the key of a sweep, and val scores against strength."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from eval.report.figures import add_legend, bounds, legend_height, style_mark
from eval.report.palette import Style, assign_styles
from eval.report.results import ResultGroup, SweptKey
from eval.report.tables import Cell, Row, Table
from robustmerge.stage.drawing import GRID_COLOUR, INK, PLAIN_TEXT, RenderedFigure, format_label, render_figure

LEGEND_COLUMNS = 4

# A sweep over one key


def draw_swept(table: Table, swept: SweptKey, ratios: Mapping[str, float]) -> RenderedFigure:
    """Draw the table of a swept key: the score of every source and, of several methods, their ranks.

    ratios: zero-shot over individual, by value. Numbers stand where they belong, words at equal distances.
    """
    panels = {"Score": [index for index, column in enumerate(table.columns) if column.is_average]}
    if ranks := [index for index, column in enumerate(table.columns) if not column.is_average]:
        panels["Rank among the methods (1 is best)"] = ranks
    ticks = [
        format_label(value) + (f"\nzero-shot / individual {ratios[value]:.2f}" if value in ratios else "")
        for value in swept.titles
    ]
    places = _find_places(list(swept.titles))
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(7.6 * len(panels), 5.6 + legend_height(table)), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, columns) in zip(all_axes, panels.items(), strict=True):
            _draw_lines(axes, table.rows, columns, places)
            axes.set_title(title, loc="left", fontweight="bold", fontsize=11, color=INK)
            axes.set_xticks(places, ticks)
            axes.set_xlabel(format_label(swept.key))
            axes.grid(axis="y", color=GRID_COLOUR, lw=0.8)
            axes.set_axisbelow(True)
        all_axes[0].set_ylabel(f"{table.columns[0].title} (%)")
        if ranks:
            all_axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))
            all_axes[-1].invert_yaxis()
        has_seeds = any(cell.seeds_low is not None for row in table.rows for cell in row.cells)
        noise = ["Thick: 95 % over questions", *(["Thin: 95 % over seeds"] if has_seeds else [])]
        noise += ["Of ranks: 95 % of the draws"] if ranks else []
        add_legend(figure, table, range(len(table.rows)), title="\n".join(noise))
        alt = "Average over tasks of every method, and its rank, against the key that the sweep runs over"
        return render_figure(figure, table.name, alt, wide=len(panels) > 1)


def _find_places(values: Sequence[str]) -> list[float]:
    """Where the values stand on the axis: numbers by themselves or by their logarithms, whichever crowds them less."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return [float(place) for place in range(len(values))]
    scales = [numbers, *([list(map(math.log, numbers))] if min(numbers) > 0 else [])]
    return max(scales, key=lambda places: min(np.diff(places), default=1.0) / max(places[-1] - places[0], 1e-9))


def _draw_lines(axes: Axes, rows: Sequence[Row], columns: Sequence[int], places: Sequence[float]) -> None:
    """Draw a line for each row that has values in these columns, beside each other; references are dashed.

    places: of the columns.
    """
    room = 0.6 * min((after - place for place, after in itertools.pairwise(places)), default=1.0)
    styles = zip(rows, assign_styles(rows), strict=True)
    drawn = [(row, style) for row, style in styles if any(row.cells[index].value is not None for index in columns)]
    for place, (row, style) in enumerate(drawn):
        shift = room * ((place + 0.5) / len(drawn) - 0.5)
        cells = [(x + shift, row.cells[index]) for x, index in zip(places, columns, strict=True)]
        points = [(x, cell.value) for x, cell in cells if cell.value is not None]
        dashes = "-" if row.kind == "merged" else "--"
        axes.plot(*zip(*points, strict=True), color=style.colour, lw=1.2, ls=dashes, alpha=0.7)
        for x, cell in cells:
            _draw_interval(axes, x, cell, style)


def _draw_interval(axes: Axes, x: float, cell: Cell, style: Style) -> None:
    """Draw a value with a thick bar over questions, and a thin one over seeds."""
    if cell.value is None:
        return
    axes.plot([x, x], bounds(cell), color=style.colour, lw=5, alpha=0.35, solid_capstyle="butt")
    if cell.seeds_low is not None and cell.seeds_high is not None:
        axes.plot([x, x], [cell.seeds_low, cell.seeds_high], color=style.colour, lw=1.2)
    axes.plot(x, cell.value, zorder=3, **style_mark(replace(style, marker="_") if style.marker == "|" else style))


# Strengths


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
