"""The findings in sentences: what stands out in the numbers, and what they cannot tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from scripts.choosing import CHOSEN
from scripts.findings_experts import Findings, Row
from scripts.findings_relation import OF_METHODS, OF_POINTS, at_best, chance_level, merged_only, retained
from scripts.findings_text import spread, which
from scripts.line import Line

VARIANTS = {True: "at the strength chosen on val", False: "as configured"}
LARGE = "eight experts of rank 16 in a 7B model span at most 128 of 4,096, 0.03"


def conclude(found: Findings, relations: Sequence[Row]) -> list[str]:
    """What stands out: a paragraph and its list for every group, and what changes between two groups."""
    blocks = []
    groups = list(dict.fromkeys(row["group"] for row in found.experts))
    for group in groups:
        own = [row for row in relations if row["group"] == group]
        merged = [row for row in found.merged if row["group"] == group]
        told = (
            _ranking([row for row in merged if row["kind"] == "merged"]),
            _strongest([row for row in own if row["scope"] == "methods"], OF_METHODS),
            _strongest_of_points(own),
            _norms(merged_only(merged)),
            _who_is_lost(found, group),
            _crossing([row for row in found.cross if row["group"] == group]),
            _multi_task([row for row in merged if row["kind"] == "multi_task"]),
        )
        blocks += [f"**{_capital(group)}**", _listed(told)]
    if len(groups) == 2:
        blocks += [f"**From {groups[0]} to {groups[1]}**", _listed([_change(found, *groups)])]
    return [block for block in blocks if block]


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_capital(sentence)}" for sentence in sentences if sentence)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def varied_alone(found: Findings) -> str:
    """What was varied alone, with its verb: only of that can an effect be told."""
    of_a = {row["group"].partition(",")[0] for row in found.experts}
    parts = ["the strength"] if any(row["chosen"] for row in found.merged) else []
    parts += ["the initial A"] if len(of_a) > 1 else []
    if not parts:
        return "nothing was"
    return f"only {' and '.join(parts)} {'were' if len(parts) > 1 else 'was'}"


def _means(rows: Sequence[Row], of: str, key: str) -> dict[str, list[float]]:
    """The values over seeds of each method or task, those of the highest mean first."""
    names = dict.fromkeys(row[of] for row in rows)
    values = {name: [row[key] for row in rows if row[of] == name] for name in names}
    return dict(sorted(values.items(), key=lambda item: -statistics.fmean(item[1])))


def _ranking(rows: Sequence[Row]) -> str:
    """From the highest seen average to the lowest, at chosen strengths and at default ones."""
    parts = []
    for chosen, words in VARIANTS.items():
        ranked = _means([row for row in rows if row["chosen"] is chosen], "method", "seen_avg")
        named = [f"{name.removesuffix(f', {CHOSEN}')} {spread(values, '.1f')}" for name, values in ranked.items()]
        parts += [f"{words}: {', '.join(named)}"] if named else []
    return f"seen average {'; '.join(parts)}." if parts else ""


def _strongest(rows: Sequence[Row], titles: dict[str, str]) -> str:
    told = [row for row in rows if not math.isnan(row["rho"])]
    if not told:
        return ""
    first, *others = sorted(told, key=lambda row: -abs(row["rho"]))
    level = chance_level(first["n"])
    beyond = [row for row in others if abs(row["rho"]) > level]
    also = "; also beyond it: " + ", ".join(f"{titles[r['quantity']]} ({_rho(r)})" for r in beyond) if beyond else ""
    verdict = "beyond" if abs(first["rho"]) > level else "not beyond"
    return (
        f"over its {first['n']} merged models the order by seen average goes most with {titles[first['quantity']]} "
        f"(ρ = {_rho(first)}, the strongest of {len(told)} quantities tried), {verdict} what two unrelated orders of "
        f"{first['n']} show once in twenty times ({level:.2f}){also}."
    )


def _rho(row: Row) -> str:
    return f"{row['rho']:+.2f}" + ("" if math.isnan(row["deviation"]) else f" ± {row['deviation']:.2f}")


def _strongest_of_points(rows: Sequence[Row]) -> str:
    parts = []
    for scope, words in (("within_task", "from method to method"), ("within_method", "from task to task")):
        told = [row for row in rows if row["scope"] == scope and not math.isnan(row["rho"])]
        if told:
            first = max(told, key=lambda row: abs(row["rho"]))
            parts.append(f"{words} most with {OF_POINTS[first['quantity']]} (ρ = {_rho(first)}, n = {first['n']})")
    return f"the retained share of an expert's gain goes {' and '.join(parts)}." if parts else ""


def _norms(rows: Sequence[Row]) -> str:
    """From the shortest merged update to the longest, at chosen strengths and at default ones."""
    parts = []
    for chosen, words in VARIANTS.items():
        ranked = _means([row for row in rows if row["chosen"] is chosen], "method", "norm_over_mean")
        told = [f"{spread(x)} ({name.removesuffix(f', {CHOSEN}')})" for name, x in reversed(ranked.items())]
        parts += [f"{words} from {told[0]} to {told[-1]}"] if len(told) > 1 else []
    return f"norm of the merged update over the experts' mean: {'; '.join(parts)}." if parts else ""


def _who_is_lost(found: Findings, group: str) -> str:
    """What the experts of the smallest and the largest norm retain, on the mean of all merged models."""
    norms = _means([row for row in found.experts if row["group"] == group], "expert", "norm_over_mean")
    kept = at_best([row for row in found.kept if row["group"] == group])
    kept = [row | {"retained": gain} for row in kept if (gain := retained(row)) is not None]
    gains = {name: statistics.fmean(values) for name, values in _means(kept, "task", "retained").items()}
    there = [name for name in norms if name in gains]
    if len(there) < 2:
        return ""
    (small, little), (large, much) = ((name, spread(norms[name])) for name in (there[-1], there[0]))
    least, most = (end(gains, key=gains.__getitem__) for end in (min, max))
    return (
        f"the expert of the smallest norm, {small} ({little} of the mean), retains {gains[small]:.2f} of its gain on "
        f"the mean of {which(kept)}; that of the largest, {large} ({much}), {gains[large]:.2f}; "
        f"the range is from {gains[least]:.2f} ({least}) to {gains[most]:.2f} ({most})."
    )


def _crossing(rows: Sequence[Row]) -> str:
    plain = [row for row in rows if row["method"].startswith("plain")]
    if not plain:
        return ""
    weight, cosine = (spread(row[key] for row in plain) for key in ("weight", "cosine"))
    return (
        f"where A and B are summed apart, the cross terms between experts weigh {weight} times the sum of the updates, "
        f"at a cosine of {cosine} to it."
    )


def _multi_task(rows: Sequence[Row]) -> str:
    """What the model trained on all tasks has of the experts, which bounds what likeness to them can explain."""
    if not rows:
        return ""
    share, norm, gain = (spread(row[key] for row in rows) for key in ("share_mean", "norm_over_mean", "retained"))
    too_weak = (
        statistics.fmean(row["retained"] for row in rows) < 0.5
    )  # only where it does the tasks is there more to say
    return (
        f"the multi-task model, which retains {gain} of the gain, holds a share of {share} of every expert's update on "
        f"the mean, at an interference of {spread((row['interference'] for row in rows), '.1f')} and a norm of {norm}"
        + ("." if too_weak else ": nearness to the experts is not needed to do their tasks.")
    )


def _change(found: Findings, before: str, after: str) -> str:
    """Differences of seen averages, paired by seed."""
    rows = [row for row in found.merged if row["kind"] == "merged"]
    scores = {(row["group"], row["method"], row["seed"]): row["seen_avg"] for row in rows}
    parts = []
    for method in dict.fromkeys(row["method"] for row in rows):
        seeds = sorted({seed for group, name, seed in scores if (group, name) == (before, method)})
        gains = [scores[after, method, s] - scores[before, method, s] for s in seeds if (after, method, s) in scores]
        parts += [f"{method} {spread(gains, '+.1f')}"] if gains else []
    return f"seen average, paired by seed: {', '.join(parts)}." if parts else ""


def limits(lines: Sequence[Line], found: Findings) -> Iterator[str]:
    """What these numbers do not say about other models, 7B above all."""
    config = lines[0].config
    n = len({row["expert"] for row in found.experts})
    rank, width = max(row["rank"] for row in found.experts), min(row["width"] for row in found.experts)
    yield (
        f"Room: {n} experts of rank {rank} span at most {n * rank} of {width} dimensions here, "
        f"N r / d = {n * rank / width:.2f}; {LARGE}. Updates meet more often here than there, so interference and "
        "cross terms do not carry over in size."
    )
    yield (
        f"Noise: the seeds are the experts' alone. All points share one {config.model.name} base and one drawing of "
        f"{config.benchmark.name}; deviations say nothing about another base or another drawing."
    )
    models = len({row["method"] for row in found.merged if row["kind"] == "merged"})
    twice = "some are one method at two strengths, " if any(row["chosen"] for row in found.merged) else ""
    yield (
        f"Number: {models} merged models are few to rank-correlate, {twice}and the quantities move together (a longer "
        "update leaves a larger share of every expert). The strongest of several correlations is strong partly by "
        "choice."
    )
    yield (
        f"Cause: {varied_alone(found)} varied alone. That a quantity goes with the scores does not say that "
        "changing it changes them."
    )
    yield (
        "Kind of expert: these are trained for some dozens of steps on drawn pictures, towards conventions of "
        "answering. Spectra, norms and cosines of experts of a 7B model have to be measured on them, with "
        "scripts/inspect_adapters.py."
    )
