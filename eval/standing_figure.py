"""RobustMerge minus every other method, with both intervals, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.figures import STYLE, Drawn, render
from eval.looks import COLOURS, GREY, INK
from eval.tables import Cell, Row, Table

BETTER, WORSE = COLOURS[0], COLOURS[1]


def draw_standing(standing: Table) -> Drawn:
    """A line a method, block by block; a panel an average. Right of zero RobustMerge is better."""
    places = _places(standing.rows)
    height = max(places.values()) if places else 0.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.8, 1.5 + 0.3 * height), layout="constrained")
        found = figure.subplots(1, len(standing.columns), sharey=True, squeeze=False)[0]
        for index, (axes, column) in enumerate(zip(found, standing.columns, strict=True)):
            axes.axvline(0, color=GREY, lw=1)
            for row, place in zip(standing.rows, places.values(), strict=True):
                _bars(axes, row.cells[index], place)
            axes.set_xlabel(f"RobustMerge minus the other, {column.title.lower()} (points)")
            axes.grid(axis="x", color="#e6e9ed", lw=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _name_lines(found[0], standing.rows, list(places.values()))
        _add_legend(figure, standing)
        alt = "RobustMerge minus each other method, with intervals over questions and over seeds"
        return render(figure, "standing", alt, wide=True)


def _places(rows: Sequence[Row]) -> dict[int, float]:
    """Heights of the lines by row, with room above each block for its heading."""
    places, height = {}, 0.0
    for index, row in enumerate(rows):
        height += 1.0 if not row.block or index and rows[index - 1].block == row.block else 2.2
        places[index] = height
    return places


def _bars(axes: Axes, cell: Cell, place: float) -> None:
    """A thick bar over questions, a thin one over seeds, a mark that is hollow where one of them holds zero."""
    if cell.value is None:
        return
    colour = (BETTER if cell.value > 0 else WORSE) if cell.bold else GREY
    axes.plot([cell.low, cell.high], [place, place], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
    if cell.seeds_low is not None:
        axes.plot([cell.seeds_low, cell.seeds_high], [place, place], "|-", color=colour, lw=1.2, ms=7)
    axes.plot(cell.value, place, "o", ms=6, color=colour, mfc=colour if cell.bold else "white", zorder=3)


def _name_lines(axes: Axes, rows: Sequence[Row], places: Sequence[float]) -> None:
    ticks, names = list(places), [row.label for row in rows]
    for index, row in enumerate(rows):
        if row.block and (not index or rows[index - 1].block != row.block):
            ticks.append(places[index] - 1.0)
            names.append(row.block)
    axes.set_yticks(ticks, names)
    for label in axes.get_yticklabels()[len(rows) :]:
        label.set_fontweight("bold")
        label.set_color(INK)
    axes.set_ylim(max(places) + 0.8, min(ticks) - 0.8)


def _add_legend(figure: Figure, standing: Table) -> None:
    handles = [Line2D([], [], color=GREY, lw=5, alpha=0.35, label="95 % over questions")]
    if any(cell.seeds_low is not None for row in standing.rows for cell in row.cells):
        handles.append(Line2D([], [], color=GREY, lw=1.2, marker="|", ms=7, label="95 % over seeds"))
    for colour, words in ((BETTER, "clearly better"), (WORSE, "clearly worse")):
        handles.append(Line2D([], [], color=colour, marker="o", ms=6, ls="none", label=f"RobustMerge {words}"))
    handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", ms=6, ls="none", label="not told apart"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
