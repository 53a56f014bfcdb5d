"""The figures of the findings: the experts, what every merge left of them, and how that goes with the scores."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pipeline.tools.findings.relations import Findings, Row, only_merged, retained
from robustmerge.analysis.figures import use_plain_ticks
from robustmerge.stage.drawing import COLOURS, GREY, GRID_COLOUR, INK, MARKERS, RC_PARAMS, RenderedFigure, render_figure

AGAINST = {
    "share": "share of the expert left",
    "distance": "distance to the expert, in its norms",
    "interference": "interference: what is not the expert's,\nover what is left of it",
}
COSINES = {"update_cosine": "of B A", "a_cosine": "of A", "b_cosine": "of B"}


def draw_findings(findings: Findings) -> list[RenderedFigure]:
    """Four figures, or three where no strength was tried on val; points are means over seeds."""
    with matplotlib.rc_context({**RC_PARAMS, "axes.titlesize": 10.5, "axes.titlelocation": "left"}):
        tried = [_draw_strengths(findings)] if findings.grid else []
        return [_draw_experts(findings), _draw_kept(findings), *tried, _draw_scores(findings)]


def _groups(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["group"] for row in rows))


def _marker_style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i // len(COLOURS) + i) % len(MARKERS)]}


def _over_seeds(rows: Sequence[Row], keys: Sequence[str], value: str) -> Iterator[tuple[Row, list[float]]]:
    """The rows that differ in their seed alone: one of them, and the values of all."""
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row[key] for key in keys), []).append(row)
    for members in alike.values():
        yield members[0], [row[value] for row in members]


def _draw_experts(findings: Findings) -> RenderedFigure:
    """Spectra, norms and cosines: a colour a group."""
    names = list(dict.fromkeys(row["expert"] for row in findings.experts))
    figure = Figure(figsize=(12, 1.8 + 0.32 * max(6, len(names))), layout="constrained")
    axes = figure.subplots(1, 3)
    groups = _groups(findings.experts)
    for i, group in enumerate(groups):
        colour, members = COLOURS[i % len(COLOURS)], [row for row in findings.experts if row["group"] == group]
        curves = [row for row in findings.spectra if row["group"] == group]
        indices = sorted({row["k"] for row in curves})
        values = [[row["relative"] for row in curves if row["k"] == k] for k in indices]
        axes[0].fill_between(indices, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.12, lw=0)
        axes[0].plot(indices, list(map(statistics.fmean, values)), marker="o", ms=4, lw=1.3, color=colour, label=group)
        shift = 0.16 * (i - (len(groups) - 1) / 2)
        for row, norms in _over_seeds(members, ("expert",), "norm"):
            height = names.index(row["expert"]) + shift
            axes[1].plot([min(norms), max(norms)], [height, height], color=colour, lw=1.2, alpha=0.6)
            axes[1].plot(statistics.fmean(norms), height, "o", ms=5, color=colour)
        for height, key in enumerate(COSINES):
            cosines = [row[key] for row in findings.pairs if row["group"] == group]
            axes[2].plot(cosines, [height + shift * 1.6] * len(cosines), "|", ms=11, mew=0.8, alpha=0.35, color=colour)
    _finish_experts(axes, names)
    return render_figure(figure, "experts", "Spectra, norms and cosines of the experts")


def _finish_experts(axes: Sequence[Axes], names: Sequence[str]) -> None:
    axes[0].set_yscale("log")
    use_plain_ticks(axes[0].yaxis)
    axes[0].set_title("Spectrum of B A")
    axes[0].set_xlabel("index k of the singular value\nmean; band: lowest and highest expert")
    axes[0].set_ylabel("$s_k\\;/\\;s_1$, mean of modules", parse_math=True)
    axes[0].xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes[0].legend(fontsize=8)
    axes[1].set_title("Norm of the update")
    axes[1].set_yticks(range(len(names)), names)
    axes[1].set_ylim(len(names) - 0.5, -0.5)
    axes[1].set_xlim(left=0)
    label = r"$\|BA\|_F$ over all modules" + "\nmean of the seeds; line: lowest to highest"
    axes[1].set_xlabel(label, parse_math=True)
    axes[2].set_title("Cosine between two experts")
    axes[2].set_yticks(range(len(COSINES)), list(COSINES.values()))
    axes[2].set_ylim(len(COSINES) - 0.5, -0.5)
    axes[2].set_xlabel("cosine, a mark a pair and seed")
    for ax in axes:
        ax.grid(color=GRID_COLOUR, lw=0.8)
        ax.set_axisbelow(True)


def _draw_kept(findings: Findings) -> RenderedFigure:
    """A panel a group, a line a merged model, a mark an expert: how much of it is left."""
    rows = only_merged(findings.kept)
    groups, methods = _groups(rows), list(dict.fromkeys((row["method"], row["variant"]) for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(2.6 + 4.6 * len(groups), 1.2 + 0.5 * max(4, len(methods))), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for ax, group in zip(panels, groups, strict=True):
        members = [row for row in rows if row["group"] == group]
        for row, values in _over_seeds(members, ("method", "variant", "task"), "share"):
            place = tasks.index(row["task"])
            height = methods.index((row["method"], row["variant"])) + 0.7 * (place / max(len(tasks) - 1, 1) - 0.5)
            ax.plot(statistics.fmean(values), height, ls="none", ms=4.5, **_marker_style(place))
        ax.axvline(1, color=GREY, lw=0.9, ls="--")
        ax.axvline(0, color=GREY, lw=0.9)
        ax.set_title(group)
        ax.set_xlabel("share of the expert left (dashed: all of it)")
        for height in range(1, len(methods), 2):
            ax.axhspan(height - 0.5, height + 0.5, color="#f4f6f8", lw=0, zorder=0)
        ax.grid(axis="x", color=GRID_COLOUR, lw=0.8)
        ax.set_axisbelow(True)
    _scale_shares(panels[0])
    labels = [f"{method}, {variant}" if variant else method for method, variant in methods]
    panels[0].set_yticks(range(len(methods)), labels)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    _add_legend(figure, [(task, _marker_style(i), True) for i, task in enumerate(tasks)], "Expert")
    return render_figure(figure, "kept", "Share of every expert that each merged model leaves")


def _draw_strengths(findings: Findings) -> RenderedFigure:
    """A panel a group, a line a method: the mean val score as the merged update gets longer."""
    groups, methods = _groups(findings.grid), list(dict.fromkeys(row["method"] for row in findings.grid))
    figure = Figure(figsize=(2.0 + 4.6 * len(groups), 3.8), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for ax, group in zip(panels, groups, strict=True):
        for i, method in enumerate(methods):
            tried = [row for row in findings.grid if (row["group"], row["method"]) == (group, method)]
            by_factor = [list(_over_seeds(tried, ("factor",), key)) for key in ("norm_over_mean", "val_avg")]
            norms, values = ([statistics.fmean(x) for _, x in alike] for alike in by_factor)
            ax.plot(norms, values, lw=1.3, ms=4.5, **_marker_style(i))
            defaults = [j for j, (row, _) in enumerate(by_factor[0]) if row["factor"] == 1]
            ax.plot([norms[j] for j in defaults], [values[j] for j in defaults], "o", ms=11, mfc="none", color=INK)
        ax.set_title(group)
        ax.set_xlabel("norm of the merged update / experts' mean\n(ringed: the default strength)")
        ax.grid(color=GRID_COLOUR, lw=0.8)
        ax.set_axisbelow(True)
    panels[0].set_xscale("log")
    use_plain_ticks(panels[0].xaxis)
    panels[0].set_ylabel("mean score on val (%)")
    _add_legend(figure, [(method, _marker_style(i), True) for i, method in enumerate(methods)], "Method")
    return render_figure(
        figure, "strengths", "Mean val score of every method at the strengths tried, against the norm of its update"
    )


def _draw_scores(findings: Findings) -> RenderedFigure:
    """Retained share of the expert's gain against what is left of the expert: a mark a method and task."""
    rows = [row | {"retained": x} for row in only_merged(findings.kept) if (x := retained(row)) is not None]
    groups = _groups(findings.kept)
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(3.9 * len(AGAINST) + 1.6, 3.3 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(AGAINST), sharey=True, sharex="col", squeeze=False)
    for row_of_axes, group in zip(panels, groups, strict=True):
        members, keys = [row for row in rows if row["group"] == group], ("method", "variant", "task")
        for ax, key in zip(row_of_axes, AGAINST, strict=True):
            outcomes = _over_seeds(members, keys, "retained")
            for (row, values), (_, gains) in zip(_over_seeds(members, keys, key), outcomes, strict=True):
                style = _marker_style(names.index(row["method"]))
                fill = style["color"] if row["variant"] else "white"
                ax.plot(statistics.fmean(values), statistics.fmean(gains), ls="none", ms=5, mfc=fill, **style)
            for height in (0, 1):
                ax.axhline(height, color=GREY, lw=0.9, ls="--" if height else "-")
            ax.grid(color=GRID_COLOUR, lw=0.8)
            ax.set_axisbelow(True)
        row_of_axes[0].set_ylabel("retained share of the gain")
        row_of_axes[0].set_title(group)
    for ax, (key, title) in zip(panels[-1], AGAINST.items(), strict=True):
        ax.set_xlabel(title)
        if key == "share":
            _scale_shares(ax)
        else:
            ax.set_xscale("log")
            use_plain_ticks(ax.xaxis)
    varied = any(row["variant"] for row in rows)
    entries = [(name, _marker_style(i), varied) for i, name in enumerate(names)]
    more = "\nfilled: strength chosen\nhollow: default" if varied else ""
    _add_legend(figure, entries, f"A mark a task{more}")
    return render_figure(figure, "scores", "Retained share of the experts' gain against what a merge left of them")


def _scale_shares(ax: Axes) -> None:
    """Linear as far as all of an expert; logarithmic beyond, where a merge overshoots by much."""
    low, high = ax.get_xlim()
    if high > 3:
        ax.set_xscale("symlog", linthresh=1, linscale=1.5)
        ax.set_xlim(low, 1.2 * high)  # the margin of the linear scale is narrow here
        ax.set_xticks([x for x in (-1, 0, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= x <= 1.2 * high])
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")


def _add_legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any], bool]], title: str) -> None:
    handles = [
        Line2D([], [], ls="none", ms=6, mfc=style["color"] if filled else "white", label=name, **style)
        for name, style, filled in entries
    ]
    figure.legend(handles=handles, loc="outside right upper", title=title, alignment="left", fontsize=9, labelcolor=INK)
