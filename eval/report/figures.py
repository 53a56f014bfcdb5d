"""The figures of a report, as bytes; the same scores give the same bytes (no dates, fixed ids, no global state)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.report.palette import Style, assign_styles, list_panels
from eval.report.tables import Cell, Row, Table, starts_block
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

LONGEST_BESIDE = 30  # characters of a title with which the legend still stands beside the axes
BETTER, WORSE = COLOURS[0], COLOURS[1]


# Scores: seen against unseen, and task by task


def draw_figures(main: Table) -> list[RenderedFigure]:
    """Draw all figures: seen against unseen average (figure 1 of the paper) if a source has both; scores by task."""
    averages = [index for index, column in enumerate(main.columns) if column.is_average]
    has_both = len(averages) == 2 and any(
        all(row.cells[index].value is not None for index in averages) for row in main.rows
    )
    with matplotlib.rc_context(PLAIN_TEXT):
        return [*([draw_seen_unseen(main)] if has_both else []), draw_tasks(main)]


def draw_seen_unseen(main: Table) -> RenderedFigure:
    """Draw seen against unseen average: a point with 95 % intervals per source, a line for the experts (seen only).

    Other sources without both averages are left out.
    """
    figure, all_axes = _start(main, 7.6, 4.6)
    index_of = {column.average_over: index for index, column in enumerate(main.columns)}
    styles, shown = assign_styles(main.rows), []
    for axes, (_, indices) in zip(all_axes, list_panels(main.rows), strict=True):
        for index in indices:
            row, style = main.rows[index], styles[index]
            seen, unseen = row.cells[index_of["seen"]], row.cells[index_of["unseen"]]
            if seen.value is not None and unseen.value is not None:
                _draw_cross(axes, seen, unseen, style)
            elif row.kind == "individual" and seen.value is not None:
                axes.axvspan(*bounds(seen), color=style.colour, alpha=0.10, lw=0)
                axes.axvline(seen.value, color=style.colour, ls="--", lw=1.2)
            else:
                continue
            shown.append(index)
        axes.set_xlabel("Average over seen tasks (%)")
        axes.margins(0.08)
    all_axes[0].set_ylabel("Average over unseen tasks (%)")
    add_legend(figure, main, shown, title="95 % intervals over questions")
    alt = "Average over seen against average over unseen tasks, a point a source"
    return render_figure(figure, "seen_unseen", alt, wide=len(all_axes) > 1)


def _start(main: Table, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Create a figure with one axes per panel, side by side, and room for the legend."""
    panels = list_panels(main.rows)
    size = (width if len(panels) == 1 else max(12.8, 4.0 * len(panels)), height + legend_height(main))
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (heading, _) in zip(all_axes, panels, strict=True):
        axes.grid(color=GRID_COLOUR, lw=0.8)
        axes.set_axisbelow(True)
        if heading:
            axes.set_title(heading[:1].upper() + heading[1:], loc="left", fontweight="bold", fontsize=11, color=INK)
    return figure, list(all_axes)


def bounds(cell: Cell) -> tuple[float, float]:
    """The ends of the interval over questions; the value itself where there is none."""
    value = cell.value or 0.0
    return value if cell.low is None else cell.low, value if cell.high is None else cell.high


def _draw_cross(axes: Axes, seen: Cell, unseen: Cell, style: Style) -> None:
    x, y = seen.value or 0.0, unseen.value or 0.0
    (left, right), (below, above) = bounds(seen), bounds(unseen)
    axes.errorbar(
        x,
        y,
        xerr=[[x - left], [right - x]],
        yerr=[[y - below], [above - y]],
        fmt=style.marker,
        ms=7,
        color=style.colour,
        mfc=style.colour if style.filled else "white",
        elinewidth=1.1,
    )


def draw_tasks(main: Table) -> RenderedFigure:
    """Draw the scores: a band for each task with a mark for each source; below, the averages with their intervals."""
    panels = list_panels(main.rows)
    band_height = min(max(0.42, 0.055 * max(len(indices) for _, indices in panels)), 0.8)
    figure, all_axes = _start(main, 7.6, 1.4 + band_height * len(main.columns))
    styles = assign_styles(main.rows)
    order = sorted(range(len(main.columns)), key=lambda index: main.columns[index].is_average)
    for axes, (_, indices) in zip(all_axes, panels, strict=True):
        for band, column in enumerate(order):
            if band % 2:
                axes.axhspan(band - 0.5, band + 0.5, color="#f4f6f8", lw=0, zorder=0)
            cells = [(main.rows[index].cells[column], styles[index]) for index in indices]
            _draw_band(axes, band, cells, main.columns[column].is_average)
        axes.grid(False, axis="y")
        axes.set_xlim(-2, max(102, 1.02 * _find_largest(main)))  # CIDEr can exceed 100
        axes.set_xlabel("Score (%)")
    _name_bands(all_axes[0], main, order)
    add_legend(figure, main, [i for i, row in enumerate(main.rows) if any(c.value is not None for c in row.cells)])
    return render_figure(figure, "tasks", "Score of every source on every task", wide=len(all_axes) > 1)


def _find_largest(main: Table) -> float:
    return max((c.high or c.value for row in main.rows for c in row.cells if c.value is not None), default=0.0)


def _draw_band(axes: Axes, band: int, cells: Sequence[tuple[Cell, Style]], has_intervals: bool) -> None:
    values = [cell.value for cell, _ in cells if cell.value is not None]
    if values:
        axes.plot([min(values), max(values)], [band, band], color="#d8dde3", lw=3, zorder=1, solid_capstyle="round")
    spread = 0.7 / max(len(cells) - 1, 1)
    for place, (cell, style) in enumerate(cells):
        if cell.value is None:
            continue
        height = band - 0.35 + spread * place
        if has_intervals:
            axes.plot(bounds(cell), [height, height], color=style.colour, lw=1.2, zorder=2)
        axes.plot(cell.value, height, zorder=3, **style_mark(style))


def _name_bands(axes: Axes, main: Table, order: Sequence[int]) -> None:
    columns = [main.columns[index] for index in order]
    axes.set_yticks(range(len(columns)), [format_label(column.title) for column in columns])
    for label, column in zip(axes.get_yticklabels(), columns, strict=True):
        label.set_color(INK if column.is_average else GREY)
        label.set_fontweight("bold" if column.is_average else "normal")
    axes.set_ylim(len(columns) - 0.5, -0.5)


def style_mark(style: Style) -> dict[str, Any]:
    """How a mark is drawn, on the axes and in the legend."""
    thin = style.marker == "|"
    fill = {"color": style.colour, "mfc": style.colour if style.filled else "white", "ls": "none"}
    return {"marker": style.marker, "ms": 11 if thin else 5.5, "mew": 2 if thin else 1, **fill}


def _list_entries(main: Table) -> dict[str, tuple[int, str]]:
    """The legend by label, in the order of the rows: the row whose style is shown, and the text."""
    rows = main.rows
    chosen = {row.label for row in rows if row.chosen}
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.chosen or row.label not in chosen:
            first.setdefault(row.label, index)
    order = list(dict.fromkeys(row.label for row in rows))
    return {label: (first[label], format_label(label)) for label in order}


def _is_beside(main: Table) -> bool:
    """Whether the legend stands beside the axes; long titles and several panels leave no room there."""
    return len(list_panels(main.rows)) == 1 and max(len(row.label) for row in main.rows) <= LONGEST_BESIDE


def _legend_columns(main: Table) -> int:
    return 1 if len(list_panels(main.rows)) == 1 else 4


def legend_height(main: Table) -> float:
    """Inches that a legend below the axes needs; one beside them needs none."""
    entries = len(_list_entries(main)) + 2 * any(row.chosen for row in main.rows)
    return 0.0 if _is_beside(main) else 0.3 + 0.21 * -(-entries // _legend_columns(main))


def add_legend(figure: Figure, main: Table, shown: Sequence[int], title: str | None = None) -> None:
    """Every source that is shown once, in the order of the rows; long titles go below, off the axes."""
    styles, labels = assign_styles(main.rows), {main.rows[index].label for index in shown}
    handles = [
        _make_handle(styles[index], text, crossed=title is not None)
        for label, (index, text) in _list_entries(main).items()
        if label in labels
    ]
    if any(row.chosen for row in main.rows):
        for text, fill in (("hollow: default strength", "white"), ("filled: chosen on val", INK)):
            handles.append(Line2D([], [], label=text, marker="s", ms=5.5, color=INK, mfc=fill, ls="none"))
    place = "outside right upper" if _is_beside(main) else "outside lower left"
    figure.legend(handles=handles, loc=place, title=title, alignment="left", ncols=_legend_columns(main))


def _make_handle(style: Style, text: str, crossed: bool) -> Line2D:
    """An entry of the legend. crossed: in the figure of the averages, where the experts are a line."""
    if crossed and style.marker == "|":
        return Line2D([], [], color=style.colour, ls="--", lw=1.2, label=f"{text} (seen only)")
    return Line2D([], [], label=text, **style_mark(style))


# Where RobustMerge stands: differences with both intervals


def draw_standing(standing: Table) -> RenderedFigure:
    """Draw RobustMerge minus each method, block by block, a panel per average; right of zero RobustMerge is better."""
    heights = _stack_rows(standing.rows)
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(12.8, 1.5 + 0.3 * max(heights, default=0.0)), layout="constrained")
        all_axes = figure.subplots(1, len(standing.columns), sharey=True, squeeze=False)[0]
        for index, (axes, column) in enumerate(zip(all_axes, standing.columns, strict=True)):
            axes.axvline(0, color=GREY, lw=1)
            for row, height in zip(standing.rows, heights, strict=True):
                _draw_difference(axes, row.cells[index], height)
            axes.set_xlabel(f"RobustMerge minus the other, {column.title.lower()} (points)")
            axes.grid(axis="x", color=GRID_COLOUR, lw=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _name_rows(all_axes[0], standing.rows, heights)
        _add_standing_legend(figure, standing)
        alt = "RobustMerge minus each other method, with intervals over questions and over seeds"
        return render_figure(figure, "standing", alt, wide=True)


def _stack_rows(rows: Sequence[Row]) -> list[float]:
    """The height of each row, with room above each block for its heading."""
    heights, height = [], 0.0
    for index in range(len(rows)):
        height += 2.2 if starts_block(rows, index) else 1.0
        heights.append(height)
    return heights


def _draw_difference(axes: Axes, cell: Cell, height: float) -> None:
    """Draw a difference: a thick bar over questions, a thin one over seeds; a hollow mark if either contains zero."""
    if cell.value is not None:
        colour = (BETTER if cell.value > 0 else WORSE) if cell.bold else GREY
        _draw_across(axes, cell, height, colour, colour if cell.bold else "white")


def _draw_across(axes: Axes, cell: Cell, height: float, colour: str, face: str) -> None:
    """Draw a value, if there is one, at a height, with a thick bar over questions and a thin one over seeds."""
    if cell.value is None:
        return
    axes.plot(bounds(cell), [height, height], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
    if cell.seeds_low is not None and cell.seeds_high is not None:
        axes.plot([cell.seeds_low, cell.seeds_high], [height, height], "|-", color=colour, lw=1.2, ms=7)
    axes.plot(cell.value, height, "o", ms=6, color=colour, mfc=face, zorder=3)


def _name_rows(axes: Axes, rows: Sequence[Row], heights: Sequence[float]) -> None:
    headings = [index for index in range(len(rows)) if starts_block(rows, index)]
    ticks = [*heights, *(heights[index] - 1.0 for index in headings)]
    axes.set_yticks(ticks, [*(format_label(row.label) for row in rows), *(rows[index].block for index in headings)])
    for label in axes.get_yticklabels()[len(rows) :]:
        label.set_fontweight("bold")
        label.set_color(INK)
    axes.set_ylim(max(heights) + 0.8, min(ticks) - 0.8)


def _add_standing_legend(figure: Figure, standing: Table) -> None:
    handles = _list_noise_handles(standing, GREY)
    for colour, words in ((BETTER, "clearly better"), (WORSE, "clearly worse")):
        handles.append(Line2D([], [], color=colour, marker="o", ms=6, ls="none", label=f"RobustMerge {words}"))
    handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", ms=6, ls="none", label="not told apart"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _list_noise_handles(table: Table, colour: str) -> list[Line2D]:
    """What the legend says of the bars of `_draw_across`."""
    handles = [Line2D([], [], color=colour, lw=5, alpha=0.35, label="95 % over questions")]
    if any(cell.seeds_low is not None for row in table.rows for cell in row.cells):
        handles.append(Line2D([], [], color=colour, lw=1.2, marker="|", ms=7, label="95 % over seeds"))
    return handles


def draw_ranking(ranking: Table) -> RenderedFigure:
    """Draw the averages of the ranked models, best on top, a panel per average; RobustMerge in colour."""
    heights = _stack_rows(ranking.rows)
    panels = [index for index, column in enumerate(ranking.columns) if column.is_average]
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(12.8, 1.5 + 0.3 * max(heights)), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, index in zip(all_axes, panels, strict=True):
            for row, height in zip(ranking.rows, heights, strict=True):
                cell, colour = row.cells[index], BETTER if row.label.startswith("RobustMerge") else INK
                _draw_across(axes, cell, height, colour, colour)
            axes.set_xlabel(f"{ranking.columns[index].heading}, average (%)")
            axes.grid(color=GRID_COLOUR, lw=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _name_rows(all_axes[0], ranking.rows, heights)
        handles = _list_noise_handles(ranking, INK)
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        alt = "Averages of the merged models, the best on top, with intervals over questions and over seeds"
        return render_figure(figure, "ranking", alt, wide=True)


def draw_balance(balance: Table) -> RenderedFigure:
    """Draw what the seen tasks keep of their experts: mean, deviation over tasks as a bar, the least one hollow."""
    heights = _stack_rows(balance.rows)
    with matplotlib.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(12.8, 1.5 + 0.3 * max(heights)), layout="constrained")
        axes = figure.subplots()
        for row, height in zip(balance.rows, heights, strict=True):
            mean, deviation, least = ((cell.value or 0.0) for cell in row.cells[:3])
            colour = BETTER if row.label.startswith("RobustMerge") else INK
            ends = [mean - deviation, mean + deviation]
            axes.plot(ends, [height, height], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(mean, height, "o", ms=6, color=colour)
            axes.plot(least, height, "o", ms=5, color=colour, mfc="white")
        axes.set_xlabel(
            "Kept of the experts' scores (%)\nbar: mean ± deviation over the seen tasks; hollow: the least task"
        )
        axes.grid(axis="x", color=GRID_COLOUR, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        _name_rows(axes, balance.rows, heights)
        alt = "What the seen tasks keep of their experts' scores, by source: mean, deviation over tasks, least task"
        return render_figure(figure, "balance", alt, wide=True)
