"""The figures of an inspection: spectra, norms, overlap and what a merge left; and figures 3, 7 and 8 of the paper.

They need matplotlib, which the rest of the library does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from robustmerge.analysis.figure_tables import (
    LARGEST,
    REST,
    STAGES,
    group_by_expert,
    tabulate_directions,
    tabulate_entries,
    tabulate_layers,
    tabulate_pruning,
)
from robustmerge.analysis.inspection import Inspection, Row
from robustmerge.stage.drawing import (
    COLOURS,
    GREY,
    GRID_COLOUR,
    INK,
    MARKERS,
    PLAIN_TEXT,
    RenderedFigure,
    format_label,
    render_figure,
)

MANY = 12  # with more experts, numbers in the squares and names in the legend are left out
LONG = 18  # characters of a name with which it fits beside a panel
WIDTH = 12.0
LOOK = {**PLAIN_TEXT, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.axisbelow": True}
STAGE_COLOURS = dict(zip(STAGES, (INK, COLOURS[0], COLOURS[1]), strict=True))
MATRICES = {"full": ("full fine-tuning", INK), "A": ("LoRA A", COLOURS[2]), "B": ("LoRA B", COLOURS[3])}
GROUPS = {LARGEST: ("largest singular value", "o", COLOURS[0]), REST: ("all others", "s", COLOURS[1])}
DIRECTIONS = {
    "similarity": "similarity of singular vectors\n(nearest direction of the merge)",
    "kept": "length kept\n$u^T D' v\\;/\\;s$",
    "ratio": "ratio of singular values\n$s'_k\\;/\\;s_k$",
}


def draw_inspection(inspection: Inspection) -> RenderedFigure:
    """Draw one to three rows of panels: that of pairs needs two experts, the last one a merged adapter."""
    names = [row["expert"] for row in inspection.experts]
    n_rows = 1 + bool(inspection.pairs) + bool(inspection.merged)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 3.9 * n_rows), layout="constrained")
        rows = iter(figure.subplots(n_rows, 3, squeeze=False))
        _draw_spectra(next(rows), inspection, names)
        if inspection.pairs:
            _draw_pairs(next(rows), inspection, names)
        if inspection.merged:
            _draw_merged(next(rows), inspection)
        return render_figure(figure, "inspection", "Norms, spectra and overlap of the experts")


def _draw_spectra(axes: Sequence[Axes], inspection: Inspection, names: Sequence[str]) -> None:
    for i, (name, rows) in enumerate(group_by_expert(inspection.spectra).items()):
        _draw_curve(axes[0], rows, "trained", name if len(names) <= MANY else None, **_marker_style(i))
    axes[0].set_title("Singular values of B A")
    _finish_spectrum(axes[0], "mean over modules")
    for stage, rows in _by_stage(inspection).items():
        _draw_curve(axes[1], rows, "value", STAGES[stage], color=STAGE_COLOURS[stage])
    axes[1].set_title(f"Before and after pruning to {inspection.density:g}")
    _finish_spectrum(axes[1], "relative to the largest as trained")
    _draw_norms(axes[2], inspection, names)


def _marker_style(i: int) -> dict[str, Any]:
    """The colour and marker of an expert, the same in all panels."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i // len(COLOURS) + i) % len(MARKERS)]}


def _draw_curve(axes: Axes, rows: Sequence[Row], key: str, label: str | None, **style: Any) -> None:
    points = [(row["k"], row[key]) for row in rows if row[key] > 0]
    label = None if label is None else format_label(label)
    axes.plot([k for k, _ in points], [value for _, value in points], lw=1.3, ms=4, label=label, **style)


def _by_stage(inspection: Inspection) -> dict[str, list[Row]]:
    table = tabulate_pruning(inspection)
    return {stage: [row for row in table if row["stage"] == stage] for stage in STAGES}


def _finish_spectrum(axes: Axes, label: str) -> None:
    _use_log_scale(axes)
    axes.set_ylabel(label)
    _finish_index(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _use_log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    use_plain_ticks(axes.yaxis)
    low, high = axes.get_ylim()
    if high < 10 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=range(1, 10)))


def use_plain_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2, 5, 10, ... of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _finish_index(axes: Axes) -> None:
    axes.set_xlabel("index of the singular value")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(color=GRID_COLOUR, lw=0.8)


def _draw_norms(axes: Axes, inspection: Inspection, names: Sequence[str]) -> None:
    """Draw a line for each kind of module, with a mark for each expert."""
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
    axes.grid(color=GRID_COLOUR, lw=0.8)


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
    """Draw a line for each merged adapter, the mean over experts, with a band from the lowest expert to the highest."""
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
            ax.plot(indices, [np.mean(x) for x in values], ms=4, lw=1.3, label=format_label(name), **_marker_style(i))
    for ax, title in zip(axes, DIRECTIONS.values(), strict=True):
        ax.set_title(title, parse_math=True)
        ax.set_xlabel("index of the expert's singular direction\nmean of the experts; band: their range")
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        ax.axhline(1, color=GREY, lw=0.8, ls="--")
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.grid(color=GRID_COLOUR, lw=0.8)
    axes[0].legend(fontsize=8)


# Figures 3, 7 and 8 of the paper


def draw_figure3(inspection: Inspection) -> RenderedFigure:
    """Spectra before and after pruning, their ratio, and the distribution of the entries of A and B."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        spectra, ratios, entries = figure.subplots(1, 3)
        for stage, rows in _by_stage(inspection).items():
            for ax, key in ((spectra, "value"), (ratios, "ratio")):
                drawn = [row for row in rows if row[key] > 0 or key == "ratio"]  # a logarithm of zero is nowhere
                indices, colour = [row["k"] for row in drawn], STAGE_COLOURS[stage]
                low, high = ([row[f"{key}_{end}"] for row in drawn] for end in ("lowest", "highest"))
                inside = [x > 0 or key == "ratio" for x in low]
                ax.fill_between(indices, low, high, where=inside, color=colour, alpha=0.12, lw=0)
                ax.plot(indices, [row[key] for row in drawn], "o-", lw=1.3, ms=4, color=colour, label=STAGES[stage])
        spectra.set_title(f"(a) Singular values, pruned to {inspection.density:g}")
        _finish_spectrum(spectra, "relative to the largest as trained")
        ratios.set_title("(b) Ratio of singular values")
        _finish_index(ratios)
        ratios.set_ylabel("after over before")
        ratios.set_ylim(bottom=0)
        _draw_entries(entries, tabulate_entries(inspection))
        return render_figure(
            figure, "figure3", "Singular values before and after pruning; entries of A and B", wide=True
        )


def _draw_entries(axes: Axes, table: Sequence[Row]) -> None:
    """Draw a line for each expert and matrix: the density of its entries."""
    for matrix, (label, colour) in MATRICES.items():
        curves = group_by_expert([row for row in table if row["matrix"] == matrix and row["count"]]).values()
        for i, curve in enumerate(curve for curve in curves if len(curve) > 1):  # of one bin: a B that is zero
            middles, densities = [(row["low"] + row["high"]) / 2 for row in curve], [row["density"] for row in curve]
            axes.plot(middles, densities, color=colour, lw=1.1, alpha=0.6, label=None if i else label)
    _use_log_scale(axes)
    axes.set_title("(c) Distribution of the entries")
    axes.set_xlabel("value of an entry")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("density")
    axes.grid(color=GRID_COLOUR, lw=0.8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def draw_figure7(inspection: Inspection) -> RenderedFigure:
    """Similarity of singular vectors and ratio of singular values, of the largest direction and of all others."""
    table = tabulate_directions(inspection)
    labels = list(dict.fromkeys(row["merged"] for row in table))
    panels = {"similarity": "Similarity of singular vectors", "ratio": "Ratio of singular values"}
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH * 0.8, 1.5 + 0.55 * len(labels)), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (key, title) in zip(axes, panels.items(), strict=True):
            for shift, (group, (_, marker, colour)) in zip((-0.14, 0.14), GROUPS.items(), strict=True):
                for height, label in enumerate(labels):
                    rows = [row for row in table if (row["merged"], row["directions"]) == (label, group)]
                    values, place = [row[key] for row in rows], height + shift
                    ax.plot(values, [place] * len(values), "|", ms=8, mew=0.9, alpha=0.6, color=colour)
                    if values:
                        ax.plot(np.mean(values), place, marker, ms=7, color=colour)
            ax.axvline(1, color=GREY, lw=0.8, ls="--")
            ax.set_title(title)
            ax.set_xlabel("1: as in the expert")
            ax.grid(axis="x", color=GRID_COLOUR, lw=0.8)
        axes[0].set_xlim(-1 if any(row["similarity"] < -0.1 for row in table) else -0.02, 1.02)
        ratios = [row["ratio"] for row in table]
        if 0 < 10 * min(ratios) < max(ratios):
            axes[1].set_xscale("log")
            use_plain_ticks(axes[1].xaxis)
        else:
            axes[1].set_xlim(left=0)
        axes[0].set_yticks(range(len(labels)), [format_label(label) for label in labels])
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
        handles = [Line2D([], [], ls="none", marker=m, ms=7, color=c, label=text) for text, m, c in GROUPS.values()]
        handles.append(Line2D([], [], ls="none", marker="|", ms=8, color=GREY, label="one expert"))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=9)
        return render_figure(
            figure, "figure7", "Similarity of singular vectors and ratio of singular values", wide=True
        )


def draw_figure8(inspection: Inspection) -> RenderedFigure:
    """Draw a panel for each layer: the singular values of the experts, of their sum and of the merged updates."""
    table = tabulate_layers(inspection)
    layers = {row["layer"]: row["module"] for row in table}
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(max(WIDTH / 2, WIDTH / 3 * len(layers)), 3.9), layout="constrained")
        panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for ax, (layer, module) in zip(panels, layers.items(), strict=True):
            rows = [row for row in table if row["layer"] == layer]
            for name in dict.fromkeys(row["name"] for row in rows if row["role"] == "expert"):
                curve = [row for row in rows if (row["role"], row["name"]) == ("expert", name)]
                _draw_curve(ax, curve, "value", None, color=GREY, alpha=0.5)
            ax.plot([], [], color=GREY, alpha=0.5, label="each expert")
            _draw_curve(ax, [row for row in rows if row["role"] == "sum"], "value", "sum of the experts", color=INK)
            for i, name in enumerate(dict.fromkeys(row["name"] for row in rows if row["role"] == "merged")):
                curve = [row for row in rows if (row["role"], row["name"]) == ("merged", name)]
                _draw_curve(ax, curve, "value", name, **_marker_style(i))
            _finish_index(ax)
            _use_log_scale(ax)
            ax.set_title(f"Layer {layer}: {module.rpartition('.')[2]}")
        panels[0].set_ylabel("singular value")
        panels[0].legend(fontsize=8)
        return render_figure(
            figure, "figure8", "Singular values in the first, the middle and the last layer", wide=True
        )


DRAWN = {"figure3": draw_figure3, "figure7": draw_figure7, "figure8": draw_figure8}
