"""The section on the merge methods: settings, papers, how each strength was chosen, what was evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.formats import escape_code, escape_html, escape_link, escape_markdown
from eval.report.results import CHOSEN, VARIANT_TITLES, Choice, ResultGroup
from eval.report.tables import MISSING

INLINE_ADDRESSES = 1  # of a method; more are listed at the end of the section


def format_methods_section(groups: Sequence[ResultGroup], strengths: str = "") -> str:
    """The section as Markdown; "" without merged models. strengths: the figure of how strengths were chosen."""
    merged = [group for group in groups if group.kind == "merged"]
    if not merged:
        return ""
    configured = [group for group in merged if group.first.choice is None and group.first.search is None] or merged
    lines = list(dict.fromkeys(_format_method(group) for group in configured))
    several = any(len(group.results) > INLINE_ADDRESSES or group.block for group in merged)
    addresses = _format_addresses(groups) if several else ""
    parts = [
        "## Methods\n",
        "\n".join([*lines, ""]),
        _format_choices(merged, strengths),
        _format_searches(merged),
        addresses,
    ]
    return "\n".join(part for part in parts if part)


def _format_method(group: ResultGroup) -> str:
    first = group.first
    paper = f" {escape_link('paper', first.paper)}." if first.paper else ""
    is_inline = len(group.results) <= INLINE_ADDRESSES and not group.block
    address = f" Address: {escape_code(first.address)}." if first.address and is_inline else ""
    return f"- **{escape_markdown(group.short_title)}.**{paper} {_format_settings(first.settings)}{address}"


def _format_settings(settings: Mapping[str, Any]) -> str:
    """The settings of a method, flat: `space=factors, prune.density=0.2`."""
    flat = ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in _flatten(settings)
    )
    return f"{escape_code(flat)}." if flat else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in settings.items():
        is_nested = isinstance(value, Mapping) and value
        flat += _flatten(value, f"{prefix}{key}.") if is_nested else [(f"{prefix}{key}", value)]
    return flat


def _list_choices(group: ResultGroup) -> list[tuple[int | None, Choice]]:
    """The strength that was chosen for each seed."""
    return [(result.seed, result.choice) for result in group.results if result.choice is not None]


def _format_choices(merged: Sequence[ResultGroup], figure: str) -> str:
    """Format how strengths were chosen: each method's grid, val scores and choice; warns where it is at an end."""
    chosen = [(group, choices) for group in merged if (choices := _list_choices(group))]
    if not chosen:
        return ""
    grid = sorted({factor for _, choices in chosen for _, choice in choices for factor in choice.means})
    lines = [
        f"### {VARIANT_TITLES[CHOSEN].capitalize()}\n",
        "Each method whose strength is free was tried at these multiples of its default update; taken is the one with "
        "the highest mean score on the `val` questions of the seen tasks, for each training seed by itself. No test "
        "question has a part in it. Shown are mean `val` scores in % (over the seeds where there are several), the "
        "best of a row **bold**.\n",
        figure,
        "| Method | " + " | ".join(f"× {factor:g}" for factor in grid) + " | Taken: × default (strength) |",
        "| --- |" + " ---: |" * len(grid) + " --- |",
    ]
    for group, choices in chosen:
        means = _format_means([choice for _, choice in choices], grid)
        lines.append(f"| {escape_markdown(_name(group))} | {' | '.join(means)} | {_format_taken(choices)} |")
    ends = [
        f"{escape_markdown(_name(group))}{seeds}"
        for group, choices in chosen
        if (seeds := _format_end_seeds(choices)) is not None
    ]
    if ends:
        lines.append(
            f"\n**At the grid's end:** {'; '.join(ends)}. A strength beyond the grid may be better there: widen "
            "`strength_grid`."
        )
    return "\n".join([*lines, ""])


def _format_searches(merged: Sequence[ResultGroup]) -> str:
    """Format what the searches for weights found, for each seed; "" where there are none."""
    found = [(group, one.seed, one.search) for group in merged for one in group.results if one.search is not None]
    if not found:
        return ""
    lines = [
        "### Weights searched on val\n",
        "A weight of every expert and the strength, searched by CMA-ES from equal weights at the chosen strength, on "
        "the same `val` questions: such a row has had more of them than others. Shown are mean `val` scores in %.\n",
        "| Method | Seed | Merges tried | At the start | Best | × default | Weights |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for group, seed, search in found:
        weights = ", ".join(f"{escape_markdown(name)} {weight:.2f}" for name, weight in search.weights.items())
        cells = [escape_markdown(_name(group)), MISSING if seed is None else str(seed), str(search.tried)]
        cells += [f"{search.start:.1f}", f"{search.mean:.1f}", f"{search.factor:.3g}", weights]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _format_means(choices: Sequence[Choice], grid: Sequence[float]) -> list[str]:
    """The mean val score at each factor of the grid, the best one bold if it is the only one."""
    tried = [[choice.means[factor] for choice in choices if factor in choice.means] for factor in grid]
    means = [sum(scores) / len(scores) if scores else None for scores in tried]
    texts = [MISSING if mean is None else f"{mean:.1f}" for mean in means]
    best = texts[means.index(max(mean for mean in means if mean is not None))]
    return [f"**{text}**" if text == best and texts.count(best) == 1 else text for text in texts]


def _name(group: ResultGroup) -> str:
    return f"{group.label} ({group.first.facet})" if group.first.facet else group.label


def _format_taken(choices: Sequence[tuple[int | None, Choice]]) -> str:
    """The chosen factor and strength, `0.5 (1.41)`; of several seeds each once, with its seeds where they differ."""
    seeds_by_text: dict[str, list[int | None]] = {}
    for seed, choice in choices:
        text = f"{choice.factor:g} ({escape_markdown(choice.strength)})" + (" ⚠" if choice.at_end else "")
        seeds_by_text.setdefault(text, []).append(seed)
    if len(seeds_by_text) == 1:
        return next(iter(seeds_by_text)) + (f", all {len(choices)} seeds" if len(choices) > 1 else "")
    return "; ".join(f"{text}, seed {', '.join(map(str, seeds))}" for text, seeds in seeds_by_text.items())


def _format_end_seeds(choices: Sequence[tuple[int | None, Choice]]) -> str | None:
    """Name the seeds that chose an end of the grid; "" if the only seed did, None if none did."""
    ends = [str(seed) for seed, choice in choices if choice.at_end]
    if not ends:
        return None
    if len(choices) < 2:
        return ""
    return ", every seed" if len(ends) == len(choices) else f", seed {', '.join(ends)}"


def _format_addresses(groups: Sequence[ResultGroup]) -> str:
    """The addresses of everything that was evaluated, folded away."""
    lines = [
        f"{group.title}{'' if result.seed is None else f', seed {result.seed}'}: {result.address}"
        for group in groups
        for result in group.results
        if result.address
    ]
    text = "\n".join(map(escape_html, lines))
    return f"<details><summary>What was evaluated: {len(lines)} addresses</summary><pre>{text}</pre></details>\n"
