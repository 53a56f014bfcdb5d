"""The figures of a report, as bytes. The same scores give the same bytes: no dates, fixed ids, no global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.report.palette import COLOURS, GREY, INK, Style, assign_styles, list_panels
from eval.report.tables import Cell, Row, Table

RC_PARAMS = {
    "svg.hashsalt": "robustmerge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": "#30363d",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
}
LONGEST_BESIDE = 30  # characters of a title with which the legend still stands beside the axes

BETTER, WORSE = COLOURS[0], COLOURS[1]


@dataclass(frozen=True)
class RenderedFigure:
    """One figure. alt: what it shows, for those who do not see it. wide: whether it needs the width of the page."""

    name: str
    alt: str
    png: bytes
    svg: bytes
    wide: bool = False


def draw_figures(main: Table) -> list[RenderedFigure]:
    """Seen against unseen average (figure 1 of the paper), if a source has both, and the scores task by task."""
    averages = [index for index, column in enumerate(main.columns) if column.is_average]
    whole = len(averages) == 2 and any(
        all(row.cells[index].value is not None for index in averages) for row in main.rows
    )
    with matplotlib.rc_context(RC_PARAMS):
        return [*([draw_seen_unseen(main)] if whole else []), draw_tasks(main)]


def _start(main: Table, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one axes a panel, side by side, and room for the legend."""
    panels = list_panels(main.rows)
    size = (width if len(panels) == 1 else 6.4 * len(panels), height + _legend_height(main))
    figure = Figure(figsize=size, layout="constrained")
    found = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (heading, _) in zip(found, panels, strict=True):
        axes.grid(color="#e6e9ed", lw=0.8)
        axes.set_axisbelow(True)
        if heading:
            axes.set_title(heading[:1].upper() + heading[1:], loc="left", fontweight="bold", fontsize=11, color=INK)
    return figure, list(found)


def draw_seen_unseen(main: Table) -> RenderedFigure:
    """One point a source with the crosses of its 95 % intervals. The experts have no unseen average: a line.

    Other sources without both averages are left out.
    """
    figure, found = _start(main, 7.6, 4.6)
    at = {column.key: index for index, column in enumerate(main.columns)}
    looks, shown = assign_styles(main.rows), []
    for axes, (_, indices) in zip(found, list_panels(main.rows), strict=True):
        for index in indices:
            row, look = main.rows[index], looks[index]
            seen, unseen = row.cells[at["seen_avg"]], row.cells[at["unseen_avg"]]
            if seen.value is not None and unseen.value is not None:
                _cross(axes, seen, unseen, look)
            elif row.kind == "individual" and seen.value is not None:
                axes.axvspan(seen.low, seen.high, color=look.colour, alpha=0.10, lw=0)
                axes.axvline(seen.value, color=look.colour, ls="--", lw=1.2)
            else:
                continue
            shown.append(index)
        axes.set_xlabel("Average over seen tasks (%)")
        axes.margins(0.08)
    found[0].set_ylabel("Average over unseen tasks (%)")
    _add_legend(figure, main, shown, title="95 % intervals over questions")
    alt = "Average over seen against average over unseen tasks, a point a source"
    return render_figure(figure, "seen_unseen", alt, wide=len(found) > 1)


def _cross(axes: Axes, seen: Cell, unseen: Cell, look: Style) -> None:
    axes.errorbar(
        seen.value,
        unseen.value,
        xerr=[[seen.value - seen.low], [seen.high - seen.value]],
        yerr=[[unseen.value - unseen.low], [unseen.high - unseen.value]],
        fmt=look.marker,
        ms=7,
        color=look.colour,
        mfc=look.colour if look.filled else "white",
        elinewidth=1.1,
    )


def draw_tasks(main: Table) -> RenderedFigure:
    """A band a task, a mark a source in the order of the legend; averages below, with their intervals."""
    panels = list_panels(main.rows)
    line_height = min(max(0.42, 0.055 * max(len(indices) for _, indices in panels)), 0.8)
    figure, found = _start(main, 7.6, 1.4 + line_height * len(main.columns))
    looks = assign_styles(main.rows)
    order = sorted(range(len(main.columns)), key=lambda index: main.columns[index].is_average)
    for axes, (_, indices) in zip(found, panels, strict=True):
        for line, column in enumerate(order):
            if line % 2:
                axes.axhspan(line - 0.5, line + 0.5, color="#f4f6f8", lw=0, zorder=0)
            _dots(axes, line, main, column, [(main.rows[index], looks[index]) for index in indices])
        axes.grid(False, axis="y")
        axes.set_xlim(-2, max(102, 1.02 * _largest(main)))  # CIDEr can exceed 100
        axes.set_xlabel("Score (%)")
    _name_bands(found[0], main, order)
    _add_legend(figure, main, [i for i, row in enumerate(main.rows) if any(c.value is not None for c in row.cells)])
    return render_figure(figure, "tasks", "Score of every source on every task", wide=len(found) > 1)


def _largest(main: Table) -> float:
    return max((c.high or c.value for row in main.rows for c in row.cells if c.value is not None), default=0.0)


def _name_bands(axes: Axes, main: Table, order: Sequence[int]) -> None:
    columns = [main.columns[index] for index in order]
    axes.set_yticks(range(len(columns)), [column.title for column in columns])
    for label, column in zip(axes.get_yticklabels(), columns, strict=True):
        label.set_color(INK if column.is_average else GREY)
        label.set_fontweight("bold" if column.is_average else "normal")
    axes.set_ylim(len(columns) - 0.5, -0.5)


def _dots(axes: Axes, line: int, main: Table, column: int, rows: Sequence[tuple[Row, Style]]) -> None:
    known = [row.cells[column].value for row, _ in rows if row.cells[column].value is not None]
    if known:
        axes.plot([min(known), max(known)], [line, line], color="#d8dde3", lw=3, zorder=1, solid_capstyle="round")
    spread = 0.7 / max(len(rows) - 1, 1)
    for place, (row, look) in enumerate(rows):
        cell = row.cells[column]
        if cell.value is None:
            continue
        height = line - 0.35 + spread * place
        if main.columns[column].is_average:
            axes.plot([cell.low, cell.high], [height, height], color=look.colour, lw=1.2, zorder=2)
        axes.plot(cell.value, height, zorder=3, **_mark(look))


def _mark(look: Style) -> dict:
    """How a mark is drawn, on the axes and in the legend."""
    thin = look.marker == "|"
    fill = {"color": look.colour, "mfc": look.colour if look.filled else "white", "ls": "none"}
    return {"marker": look.marker, "ms": 11 if thin else 5.5, "mew": 2 if thin else 1, **fill}


def _legend_of(main: Table) -> dict[str, tuple[int, str]]:
    """By label, in the order of the rows: the row whose look stands for it, and how it is called."""
    rows = main.rows
    chosen = {row.label for row in rows if row.chosen}
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.chosen or row.label not in chosen:
            first.setdefault(row.label, index)
    order = list(dict.fromkeys(row.label for row in rows))
    return {label: (first[label], textwrap.shorten(label, 100, placeholder="…")) for label in order}


def _is_beside(main: Table) -> bool:
    return len(list_panels(main.rows)) == 1 and max(len(row.label) for row in main.rows) <= LONGEST_BESIDE


def _legend_columns(main: Table) -> int:
    return 1 if len(list_panels(main.rows)) == 1 else 4


def _legend_height(main: Table) -> float:
    """Inches that a legend below the axes needs; one beside them needs none."""
    entries = len(_legend_of(main)) + 2 * any(row.chosen for row in main.rows)
    return 0.0 if _is_beside(main) else 0.3 + 0.21 * -(-entries // _legend_columns(main))


def _add_legend(figure: Figure, main: Table, shown: Sequence[int], title: str | None = None) -> None:
    """Every source that is shown once, in the order of the rows; long titles go below, off the axes."""
    looks, labels = assign_styles(main.rows), {main.rows[index].label for index in shown}
    handles = []
    for label, (index, text) in _legend_of(main).items():
        if label in labels:
            handles.append(_handle(looks[index], text, crossed=title is not None))
    if any(row.chosen for row in main.rows):
        for words, fill in (("hollow: default strength", "white"), ("filled: chosen on val", INK)):
            handles.append(Line2D([], [], label=words, marker="s", ms=5.5, color=INK, mfc=fill, ls="none"))
    place = "outside right upper" if _is_beside(main) else "outside lower left"
    figure.legend(handles=handles, loc=place, title=title, alignment="left", ncols=_legend_columns(main))


def _handle(look: Style, text: str, crossed: bool) -> Line2D:
    """crossed: in the figure of the averages, where the experts are a line."""
    if crossed and look.marker == "|":
        return Line2D([], [], color=look.colour, ls="--", lw=1.2, label=f"{text} (seen only)")
    return Line2D([], [], label=text, **_mark(look))


def render_figure(figure: Figure, name: str, alt: str, wide: bool = False) -> RenderedFigure:
    """The figure as PNG and SVG."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        files[kind] = file.getvalue()
    return RenderedFigure(name, alt, **files, wide=wide)


def draw_standing(standing: Table) -> RenderedFigure:
    """A line a method, block by block; a panel an average. Right of zero RobustMerge is better."""
    places = _places(standing.rows)
    height = max(places.values()) if places else 0.0
    with matplotlib.rc_context(RC_PARAMS):
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
        _add_standing_legend(figure, standing)
        alt = "RobustMerge minus each other method, with intervals over questions and over seeds"
        return render_figure(figure, "standing", alt, wide=True)


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


def _add_standing_legend(figure: Figure, standing: Table) -> None:
    handles = [Line2D([], [], color=GREY, lw=5, alpha=0.35, label="95 % over questions")]
    if any(cell.seeds_low is not None for row in standing.rows for cell in row.cells):
        handles.append(Line2D([], [], color=GREY, lw=1.2, marker="|", ms=7, label="95 % over seeds"))
    for colour, words in ((BETTER, "clearly better"), (WORSE, "clearly worse")):
        handles.append(Line2D([], [], color=colour, marker="o", ms=6, ls="none", label=f"RobustMerge {words}"))
    handles.append(Line2D([], [], color=GREY, marker="o", mfc="white", ms=6, ls="none", label="not told apart"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
