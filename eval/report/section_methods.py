"""The methods of a report in words: settings, papers, how each strength was chosen, what was evaluated."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.formats import escape_markdown
from eval.report.results import VARIANTS, Choice, ResultGroup
from eval.report.tables import MISSING

INLINE_ADDRESSES = 1  # of a method; more are listed at the end of the section


def format_methods_section(rows: Sequence[ResultGroup]) -> str:
    """The section, or "" without merged models."""
    merged = [row for row in rows if row.kind == "merged"]
    if not merged:
        return ""
    configured = [row for row in merged if row.first.choice is None] or merged
    lines = list(dict.fromkeys(_tell(row) for row in configured))
    several = any(len(row.points) > INLINE_ADDRESSES or row.block for row in merged)
    parts = ["## Methods\n", "\n".join([*lines, ""]), _tell_choices(merged), _addresses(rows) if several else ""]
    return "\n".join(part for part in parts if part)


def _tell(row: ResultGroup) -> str:
    point = row.first
    paper = f" [paper]({point.paper})." if point.paper else ""
    single = len(row.points) <= INLINE_ADDRESSES and not row.block
    address = f" Address: `{point.address}`." if point.address and single else ""
    title = row.label if row.block else row.title
    return f"- **{escape_markdown(title)}.**{paper} {_show_settings(point.settings)}{address}"


def _show_settings(settings: Mapping[str, Any]) -> str:
    """`space=factors, prune.density=0.2` and so on, flat."""
    flat = ", ".join(f"{key}={_plain(value)}" for key, value in _flatten(settings))
    return f"`{flat}`." if flat else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found += _flatten(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tell_choices(merged: Sequence[ResultGroup]) -> str:
    """The grid, its mean val scores and what was chosen, a row a method; and where the grid was too small."""
    rows = [(row, [point.choice for point in row.points]) for row in merged if row.first.choice is not None]
    if not rows:
        return ""
    grid = sorted({factor for _, choices in rows for choice in choices for factor in choice.means})
    lines = [
        f"### {VARIANTS['chosen'].capitalize()}\n",
        "Each method whose strength is free was tried at these multiples of its default update; taken is the one with "
        "the highest mean score on the `val` questions of the seen tasks, for each training seed by itself. No test "
        "question has a part in it. Shown are mean `val` scores in % (over the seeds where there are several), the "
        "best of a row **bold**.\n",
        "| Method | " + " | ".join(f"× {factor:g}" for factor in grid) + " | Taken: × default (strength) |",
        "| --- |" + " ---: |" * len(grid) + " --- |",
    ]
    for row, choices in rows:
        means = [_mean([choice.means[f] for choice in choices if f in choice.means]) for f in grid]
        shown = [MISSING if mean is None else f"{mean:.1f}" for mean in means]
        best = shown[means.index(max(mean for mean in means if mean is not None))]
        cells = [f"**{text}**" if text == best and shown.count(best) == 1 else text for text in shown]
        lines.append(f"| {escape_markdown(_short(row))} | " + " | ".join(cells) + f" | {_tell_taken(row)} |")
    ends = [
        f"{escape_markdown(_short(row))}{_of_seeds(row)}"
        for row, choices in rows
        if any(choice.at_end for choice in choices)
    ]
    if ends:
        lines.append(
            f"\n**At the grid's end:** {'; '.join(ends)}. A strength beyond the grid may be better there: widen "
            "`strength_grid`."
        )
    return "\n".join([*lines, ""])


def _short(row: ResultGroup) -> str:
    return f"{row.label} ({row.first.facet})" if row.first.facet else row.label


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _tell_taken(row: ResultGroup) -> str:
    """`0.5 (1.41)`; of several seeds each value once, with its seeds where they differ."""
    by_choice: dict[str, list[int | None]] = {}
    for point in row.points:
        by_choice.setdefault(_shown_choice(point.choice), []).append(point.seed)
    if len(by_choice) == 1:
        return next(iter(by_choice)) + (f", all {len(row.points)} seeds" if len(row.points) > 1 else "")
    return "; ".join(f"{words}, seed {', '.join(map(str, seeds))}" for words, seeds in by_choice.items())


def _shown_choice(choice: Choice) -> str:
    return f"{choice.factor:g} ({choice.strength:.3g})" + (" ⚠" if choice.at_end else "")


def _of_seeds(row: ResultGroup) -> str:
    """Which of several seeds chose an end of the grid."""
    if len(row.points) < 2:
        return ""
    ends = [str(point.seed) for point in row.points if point.choice.at_end]
    return ", every seed" if len(ends) == len(row.points) else f", seed {', '.join(ends)}"


def _addresses(rows: Sequence[ResultGroup]) -> str:
    """What was evaluated, folded away."""
    listed = [
        f"{row.title}{'' if point.seed is None else f', seed {point.seed}'}: {point.address}"
        for row in rows
        for point in row.points
        if point.address
    ]
    text = html.escape("\n".join(listed))
    return f"<details><summary>What was evaluated: {len(listed)} addresses</summary><pre>{text}</pre></details>\n"
