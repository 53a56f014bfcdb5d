"""The figure of an inspection: spectra, pruning, norms; similarity of A, overlap, cosines; retention by a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.report.figures import RC_PARAMS, RenderedFigure, render_figure
from eval.report.palette import COLOURS, GREY, INK, MARKERS
from robustmerge.analysis.inspection import Inspection, Row

MANY = 12  # with more experts, numbers in the squares and names in the legend are left out
LONG = 18  # characters of a name with which it fits beside a panel
WIDTH = 12.0
STAGES = {"trained": "as trained", "pruned": "pruned", "scaled": "pruned, B scaled by A"}
DIRECTIONS = {
    "similarity": "similarity of singular vectors\n(nearest direction of the merge)",
    "kept": "length kept\n$u^T D' v\\;/\\;s$",
    "ratio": "ratio of singular values\n$s'_k\\;/\\;s_k$",
}


def draw_inspection(inspection: Inspection) -> RenderedFigure:
    """Two or three rows of panels: one expert has no pairs, without a merged adapter there is no third row."""
    names = [row["expert"] for row in inspection.experts]
    n_rows = 1 + bool(inspection.pairs) + bool(inspection.merged)
    with matplotlib.rc_context({**RC_PARAMS, "axes.titlesize": 10.5, "axes.titlelocation": "left"}):
        figure = Figure(figsize=(WIDTH, 3.9 * n_rows), layout="constrained")
        rows = iter(figure.subplots(n_rows, 3, squeeze=False))
        _draw_spectra(next(rows), inspection, names)
        if inspection.pairs:
            _draw_pairs(next(rows), inspection, names)
        if inspection.merged:
            _draw_merged(next(rows), inspection)
        return render_figure(figure, "inspection", "Norms, spectra and overlap of the experts")


def _draw_spectra(axes: Sequence[Axes], inspection: Inspection, names: Sequence[str]) -> None:
    by_expert = {name: [row for row in inspection.spectra if row["expert"] == name] for name in names}
    for i, (name, rows) in enumerate(by_expert.items()):
        _draw_curve(axes[0], rows, "trained", name if len(names) <= MANY else None, **_marker_style(i))
    axes[0].set_title("Singular values of B A")
    _finish_spectrum(axes[0], "mean over modules")
    for (key, label), colour in zip(STAGES.items(), (INK, COLOURS[0], COLOURS[1]), strict=True):
        _draw_curve(axes[1], _mean_over(list(by_expert.values()), STAGES, relative="trained"), key, label, color=colour)
    axes[1].set_title(f"Before and after pruning to {inspection.density:g}")
    _finish_spectrum(axes[1], "relative to the largest as trained")
    _draw_norms(axes[2], inspection, names)


def _marker_style(i: int) -> dict[str, Any]:
    """The colour and marker of an expert, the same in all panels."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i // len(COLOURS) + i) % len(MARKERS)]}


def _draw_curve(axes: Axes, rows: Sequence[Row], key: str, label: str | None, **style: Any) -> None:
    points = [(row["k"], row[key]) for row in rows if row[key] > 0]
    axes.plot([k for k, _ in points], [value for _, value in points], lw=1.3, ms=4, label=label, **style)


def _mean_over(curves: Sequence[Sequence[Row]], keys: Mapping[str, str], relative: str | None = None) -> list[Row]:
    """The mean curve, index by index of those that have it; each divided by its first value of `relative`."""
    curves = [rows for rows in curves if rows and (relative is None or rows[0][relative] > 0)]
    longest = max(map(len, curves), default=0)
    return [
        {"k": k + 1}
        | {
            key: float(np.mean([c[k][key] / (c[0][relative] if relative else 1.0) for c in curves if len(c) > k]))
            for key in keys
        }
        for k in range(longest)
    ]


def _finish_spectrum(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel(label, parse_math=True)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(color="#e6e9ed", lw=0.8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _draw_norms(axes: Axes, inspection: Inspection, names: Sequence[str]) -> None:
    """A line a kind of module, a mark an expert."""
    kinds = sorted({row["kind"] for row in inspection.modules})
    for i, name in enumerate(names):
        squares = dict.fromkeys(kinds, 0.0)
        for row in inspection.modules:
            if row["expert"] == name:
                squares[row["kind"]] += row["norm"] ** 2
        axes.plot(
            [squares[kind] ** 0.5 for kind in kinds], range(len(kinds)), ls="none", ms=6, alpha=0.8, **_marker_style(i)
        )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(r"$\|BA\|_F$ over all modules of the kind", parse_math=True)
    axes.set_title("Norm of the update")
    axes.grid(color="#e6e9ed", lw=0.8)


def _draw_pairs(axes: Sequence[Axes], inspection: Inspection, names: Sequence[str]) -> None:
    panels = (
        ("Cosine of A", "a_cosine", "a_cosine", (-1, 1), "RdBu_r"),
        ("Cosine of B A", "update_cosine", "update_cosine", (-1, 1), "RdBu_r"),
        ("Overlap of subspaces\ncolumns above, rows below", "columns", "rows", (0, 1), "Blues"),
    )
    place = {name: i for i, name in enumerate(names)}
    shorter = [name if len(name) <= LONG else name[: LONG - 1] + "…" for name in names]
    for ax, (title, upper, lower, limits, colours) in zip(axes, panels, strict=True):
        values = np.full((len(names), len(names)), np.nan)
        for row in inspection.pairs:
            i, j = place[row["one"]], place[row["other"]]
            values[i, j], values[j, i] = row[upper], row[lower]
        image = ax.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
        ax.figure.colorbar(image, cax=ax.inset_axes((1.05, 0, 0.06, 1)))  # as high as the squares, below the title
        ax.set_title(title)
        size = 8 if len(names) <= MANY else 8 * max(0.4, MANY / len(names))
        ax.set_xticks(range(len(names)), shorter, rotation=90, fontsize=size)
        ax.set_yticks(range(len(names)), shorter, fontsize=size)
        ax.tick_params(length=0)
        if len(names) <= MANY:
            for (i, j), value in np.ndenumerate(values):
                strong = abs(value) > 0.6 * limits[1]
                text = "" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
                ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if strong else INK)


def _draw_merged(axes: Sequence[Axes], inspection: Inspection) -> None:
    """A line a merged adapter, the mean over experts; the band is from the lowest expert to the highest."""
    for i, name in enumerate(dict.fromkeys(row["merged"] for row in inspection.merged)):
        rows = [row for row in inspection.merged if row["merged"] == name]
        indices = sorted({row["k"] for row in rows})
        for ax, key in zip(axes, DIRECTIONS, strict=True):
            values = [[row[key] for row in rows if row["k"] == k] for k in indices]
            ax.fill_between(
                indices,
                list(map(min, values)),
                list(map(max, values)),
                color=_marker_style(i)["color"],
                alpha=0.12,
                lw=0,
            )
            ax.plot(indices, [np.mean(x) for x in values], ms=4, lw=1.3, label=name, **_marker_style(i))
    for ax, title in zip(axes, DIRECTIONS.values(), strict=True):
        ax.set_title(title)
        ax.set_xlabel("index of the expert's singular direction\nmean of the experts; band: their range")
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        ax.axhline(1, color=GREY, lw=0.8, ls="--")
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.grid(color="#e6e9ed", lw=0.8)
    axes[0].legend(fontsize=8)
