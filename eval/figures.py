"""The figures of a report, as bytes. The same scores give the same bytes: no dates, fixed ids, no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.tables import Cell, Column, Row, Table

# Okabe and Ito: told apart with any colour vision. https://jfly.uni-koeln.de/color/
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


def _look_of(rows: Sequence[Row]) -> list[_Look]:
    """References are grey and black, merged models take colours and markers in turn."""
    looks, merged = [], 0
    for row in rows:
        if row.kind in ("zero_shot", "individual", "multi_task"):
            marker = {"zero_shot": "o", "individual": "|", "multi_task": "D"}[row.kind]
            hollow = row.kind == "zero_shot"
            looks.append(_Look(GREY if hollow else INK, marker, filled=not hollow))
        else:
            turn = merged // len(COLOURS) + merged
            looks.append(_Look(COLOURS[merged % len(COLOURS)], MARKERS[turn % len(MARKERS)], filled=True))
            merged += 1
    return looks


def draw_seen_unseen(main: Table) -> Drawn:
    """One point a source with the crosses of its 95 % intervals. The experts have no unseen average: a line."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    at = {column.key: index for index, column in enumerate(main.columns)}
    for row, look in zip(main.rows, _look_of(main.rows), strict=True):
        seen, unseen = row.cells[at["seen_avg"]], row.cells[at["unseen_avg"]]
        if seen.value is not None and unseen.value is not None:
            _cross(axes, seen, unseen, look, row.title)
        elif seen.value is not None:
            axes.axvspan(seen.low, seen.high, color=INK, alpha=0.10, lw=0)
            axes.axvline(seen.value, color=INK, ls="--", lw=1.2, label=f"{row.title} (seen only)")
    axes.set_xlabel("Average over seen tasks (%)")
    axes.set_ylabel("Average over unseen tasks (%)")
    axes.grid(color="#e6e9ed", lw=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    figure.legend(loc="outside right upper", title="95 % intervals", alignment="left")
    return _render(figure, "seen_unseen", "Average over seen against average over unseen tasks, a point a source")


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
    """A line a task, a mark a source; averages below, with their intervals."""
    figure = Figure(figsize=(7.6, 1.4 + 0.42 * len(main.columns)), layout="constrained")
    axes = figure.add_subplot()
    looks = _look_of(main.rows)
    order = sorted(range(len(main.columns)), key=lambda index: main.columns[index].is_average)
    for line, index in enumerate(order):
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
    figure.legend(*_without_doubles(axes), loc="outside right upper")
    return _render(figure, "tasks", "Score of every source on every task")


def _dots(axes: Axes, line: int, main: Table, index: int, looks: Sequence[_Look]) -> None:
    cells = [row.cells[index] for row in main.rows]
    known = [cell.value for cell in cells if cell.value is not None]
    if known:
        axes.plot([min(known), max(known)], [line, line], color="#d8dde3", lw=3, zorder=1, solid_capstyle="round")
    spread = 0.5 / max(len(cells) - 1, 1)
    for place, (row, cell, look) in enumerate(zip(main.rows, cells, looks, strict=True)):
        if cell.value is None:
            continue
        height = line - 0.25 + spread * place
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


def _without_doubles(axes: Axes) -> tuple[list, list[str]]:
    found = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _render(figure: Figure, name: str, alt: str) -> Drawn:
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        files[kind] = file.getvalue()
    return Drawn(name, alt, **files)
