"""The figures of a report, as bytes. The same scores give the same bytes: no dates, fixed ids, no global state."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.tables import REFERENCES, Cell, Column, Row, Table

# Okabe and Ito, told apart with any colour vision (https://jfly.uni-koeln.de/color/); brown for their yellow, which is
# too light for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE = {
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
INK = "#24292f"
GREY = "#6e7781"


@dataclass(frozen=True)
class Drawn:
    """One figure. alt: what it shows, for those who do not see it."""

    name: str
    alt: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    filled: bool


def draw_figures(main: Table) -> list[Drawn]:
    """Seen against unseen average (figure 1 of the paper), if a source has both, and the scores task by task."""
    averages = [index for index, column in enumerate(main.columns) if column.is_average]
    whole = len(averages) == 2 and any(
        all(row.cells[index].value is not None for index in averages) for row in main.rows
    )
    with matplotlib.rc_context(STYLE):
        return [*([draw_seen_unseen(main)] if whole else []), draw_tasks(main)]


def look_of(rows: Sequence[Row]) -> list[_Look]:
    """References are grey and black, from the second of a kind on coloured; others take colours and markers in turn."""
    looks, merged = [], 0
    before: Counter[str] = Counter()
    for row in rows:
        if row.kind in REFERENCES:
            marker = {"zero_shot": "o", "individual": "|", "multi_task": "D"}[row.kind]
            hollow, turn = row.kind == "zero_shot", before[row.kind]
            colour = COLOURS[(turn - 1) % len(COLOURS)] if turn else GREY if hollow else INK
            looks.append(_Look(colour, marker, filled=not hollow and not turn))
            before[row.kind] += 1
        else:
            turn = merged // len(COLOURS) + merged
            looks.append(_Look(COLOURS[merged % len(COLOURS)], MARKERS[turn % len(MARKERS)], filled=True))
            merged += 1
    return looks


def draw_seen_unseen(main: Table) -> Drawn:
    """One point a source with the crosses of its 95 % intervals. The experts have no unseen average: a line.

    Other sources without both averages are left out.
    """
    figure = Figure(figsize=(7.6, 4.6 + _legend_height(main)), layout="constrained")
    axes = figure.add_subplot()
    at = {column.key: index for index, column in enumerate(main.columns)}
    for row, look in zip(main.rows, look_of(main.rows), strict=True):
        seen, unseen = row.cells[at["seen_avg"]], row.cells[at["unseen_avg"]]
        if seen.value is not None and unseen.value is not None:
            _cross(axes, seen, unseen, look, row.title)
        elif row.kind == "individual" and seen.value is not None:
            axes.axvspan(seen.low, seen.high, color=look.colour, alpha=0.10, lw=0)
            axes.axvline(seen.value, color=look.colour, ls="--", lw=1.2, label=f"{row.title} (seen only)")
    axes.set_xlabel("Average over seen tasks (%)")
    axes.set_ylabel("Average over unseen tasks (%)")
    axes.grid(color="#e6e9ed", lw=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    _add_legend(figure, axes, main, title="95 % intervals")
    return render(figure, "seen_unseen", "Average over seen against average over unseen tasks, a point a source")


def _cross(axes: Axes, seen: Cell, unseen: Cell, look: _Look, title: str) -> None:
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
        label=title,
    )


def draw_tasks(main: Table) -> Drawn:
    """A band a task, a mark a source in the order of the legend; averages below, with their intervals."""
    line_height = min(max(0.42, 0.055 * len(main.rows)), 0.8)
    figure = Figure(figsize=(7.6, 1.4 + line_height * len(main.columns) + _legend_height(main)), layout="constrained")
    axes = figure.add_subplot()
    looks = look_of(main.rows)
    order = sorted(range(len(main.columns)), key=lambda index: main.columns[index].is_average)
    for line, index in enumerate(order):
        if line % 2:
            axes.axhspan(line - 0.5, line + 0.5, color="#f4f6f8", lw=0, zorder=0)
        _dots(axes, line, main, index, looks)
    columns: list[Column] = [main.columns[index] for index in order]
    axes.set_yticks(range(len(columns)), [column.title for column in columns])
    for label, column in zip(axes.get_yticklabels(), columns, strict=True):
        label.set_color(INK if column.is_average else GREY)
        label.set_fontweight("bold" if column.is_average else "normal")
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("Score (%)")
    axes.grid(axis="x", color="#e6e9ed", lw=0.8)
    axes.set_axisbelow(True)
    _add_legend(figure, axes, main)
    return render(figure, "tasks", "Score of every source on every task")


def _dots(axes: Axes, line: int, main: Table, index: int, looks: Sequence[_Look]) -> None:
    cells = [row.cells[index] for row in main.rows]
    known = [cell.value for cell in cells if cell.value is not None]
    if known:
        axes.plot([min(known), max(known)], [line, line], color="#d8dde3", lw=3, zorder=1, solid_capstyle="round")
    spread = 0.7 / max(len(cells) - 1, 1)
    for place, (row, cell, look) in enumerate(zip(main.rows, cells, looks, strict=True)):
        if cell.value is None:
            continue
        height = line - 0.35 + spread * place
        if main.columns[index].is_average:
            axes.plot([cell.low, cell.high], [height, height], color=look.colour, lw=1.2, zorder=2)
        axes.plot(
            cell.value,
            height,
            look.marker,
            ms=11 if look.marker == "|" else 5.5,
            mew=2 if look.marker == "|" else 1,
            color=look.colour,
            mfc=look.colour if look.filled else "white",
            zorder=3,
            label=row.title,
            ls="none",
        )


def _is_beside(main: Table) -> bool:
    return max(len(row.title) for row in main.rows) <= LONGEST_BESIDE


def _legend_height(main: Table) -> float:
    """Inches that a legend below the axes needs; one beside them needs none."""
    return 0.0 if _is_beside(main) else 0.3 + 0.21 * len(main.rows)


def _add_legend(figure: Figure, axes: Axes, main: Table, title: str | None = None) -> None:
    """Every source once, in the order of the rows; long titles go below, where they do not press on the axes."""
    found = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = {name: i for i, row in enumerate(main.rows) for name in (row.title, f"{row.title} (seen only)")}
    labels = sorted(found, key=order.__getitem__)
    place = "outside right upper" if _is_beside(main) else "outside lower left"
    shown = [textwrap.shorten(label, 100, placeholder="…") for label in labels]
    figure.legend([found[label] for label in labels], shown, loc=place, title=title, alignment="left")


def render(figure: Figure, name: str, alt: str) -> Drawn:
    """The figure as PNG and SVG."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        files[kind] = file.getvalue()
    return Drawn(name, alt, **files)
