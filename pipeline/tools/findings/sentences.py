"""The findings in sentences: what stands out in the numbers, and what they cannot tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from pipeline.plan import Plan
from pipeline.tools.findings.relations import (
    OF_METHODS,
    OF_POINTS,
    Findings,
    Row,
    at_best,
    chance_level,
    merged_only,
    retained,
)
from pipeline.tools.findings.tables import count, rho, spread, which, without_variant

VARIANTS = {True: "at the strength chosen on val", False: "as configured"}
LARGE = "eight experts of rank 16 in a 7B model span at most 128 of 4,096, 0.03"


def conclude(found: Findings, relations: Sequence[Row]) -> list[str]:
    """What stands out: a list for every group, and what changes between two groups."""
    blocks = []
    groups = list(dict.fromkeys(row["group"] for row in found.experts))
    for group in groups:
        own = [row for row in relations if row["group"] == group]
        rows = [row for row in found.merged if row["group"] == group]
        merged = merged_only(rows)
        told = (
            _order(merged),
            _strength(merged),
            _goes_with_order([row for row in own if row["scope"] == "methods"]),
            _goes_with_gain(own),
            _who_is_lost(found, group),
            _crossing([row for row in found.cross if row["group"] == group]),
            _multi_task([row for row in rows if row["kind"] == "multi_task"]),
        )
        blocks += [f"**{_capital(group)}, {count(len({row['seed'] for row in rows}), 'seed')}**", _listed(told)]
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


def _order(rows: Sequence[Row]) -> str:
    """The methods from the highest seen average to the lowest, at the chosen strengths if there are any."""
    best = at_best(rows)
    ranked = _means(best, "method", "seen_avg")
    named = [f"{without_variant(name)} {spread(values, '.1f')}" for name, values in ranked.items()]
    words = VARIANTS[any(row["chosen"] for row in best)]
    return f"seen average {words}, %: {', '.join(named)}." if named else ""


def _strength(rows: Sequence[Row]) -> str:
    """How far the methods lie apart at both strengths: between the two nothing but the strength differs."""
    means = {variant: _both_strengths(rows, variant, "seen_avg") for variant in VARIANTS}
    lengths = {variant: _both_strengths(rows, variant, "norm_over_mean") for variant in VARIANTS}
    if len(means[True]) < 2:
        return ""
    apart = {variant: max(x.values()) - min(x.values()) for variant, x in means.items()}
    ends = {variant: f"{min(x.values()):.2f} to {max(x.values()):.2f}" for variant, x in lengths.items()}
    return (
        f"strength: the best and the worst of {len(means[True])} methods lie {apart[False]:.1f} points apart as "
        f"configured, {apart[True]:.1f} at the strengths chosen on val, and nothing but the strength differs between "
        f"the two. Their updates are {ends[False]} times as long as an expert's on the mean as configured, "
        f"{ends[True]} times as chosen."
    )


def _both_strengths(rows: Sequence[Row], chosen: bool, key: str) -> dict[str, float]:
    """The mean over seeds of every method that was evaluated at a chosen strength too, at either."""
    twice = {without_variant(row["method"]) for row in rows if row["chosen"]}
    values = _means([row for row in rows if row["chosen"] is chosen], "method", key)
    return {without_variant(name): statistics.fmean(x) for name, x in values.items() if without_variant(name) in twice}


def _goes_with_order(rows: Sequence[Row]) -> str:
    """Which quantities go with the order of the merged models more closely than chance would have it."""
    told = sorted((row for row in rows if not math.isnan(row["rho"])), key=lambda row: -abs(row["rho"]))
    if not told:
        return ""
    n, level = told[0]["n"], chance_level(told[0]["n"])
    beyond = [row for row in told if abs(row["rho"]) > level]
    named = [f"{OF_METHODS[row['quantity']]} ({rho(row)})" for row in beyond or told[:1]]
    chance = f"chance is beyond ±{level:.2f} once in twenty times, more often in the strongest of {len(told)}"
    if not beyond:
        return (
            f"none of {len(told)} quantities goes with the order of {n} merged models by seen average beyond chance; "
            f"the strongest rank correlation is that of {named[0]}, and {chance}."
        )
    return (
        f"the order of {n} merged models by seen average goes with {', '.join(named)}: rank correlations, of "
        f"{len(told)} quantities; {chance}."
    )


def _goes_with_gain(rows: Sequence[Row]) -> str:
    parts = []
    for scope, words, of in (
        ("within_task", "from one merged model to another", "merged models"),
        ("within_method", "from one task to another", "tasks"),
    ):
        told = [row for row in rows if row["scope"] == scope and not math.isnan(row["rho"])]
        if told:
            first = max(told, key=lambda row: abs(row["rho"]))
            beyond = "beyond" if abs(first["rho"]) > chance_level(first["n"]) else "not beyond"
            named = f"{OF_POINTS[first['quantity']]} ({rho(first)}, n = {first['n']} {of}, {beyond} chance)"
            parts.append(f"{words} most with {named}")
    return f"the share of an expert's gain that is retained goes {'; '.join(parts)}." if parts else ""


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
        f"who is lost: averaged over {which(kept)}, the expert of the shortest update, {small} ({little} of the "
        f"experts' mean), keeps {gains[small]:.2f} of its gain over zero-shot, that of the longest, {large} ({much}), "
        f"{gains[large]:.2f}; least is kept of {least} ({gains[least]:.2f}), most of {most} ({gains[most]:.2f})."
    )


def _crossing(rows: Sequence[Row]) -> str:
    plain = [row for row in rows if row["method"].startswith("plain")]
    if not plain:
        return ""
    weight, cosine = (spread(row[key] for row in plain) for key in ("weight", "cosine"))
    return (
        f"where A and B are summed apart, the terms that pair one expert's B with another's A are {weight} times as "
        f"long as the sum of the experts' updates (cosine of the two: {cosine}; 1 is the same direction)."
    )


def _multi_task(rows: Sequence[Row]) -> str:
    """What the model trained on all tasks has of the experts, which bounds what likeness to them can explain."""
    if not rows:
        return ""
    share, norm, gain = (spread(row[key] for row in rows) for key in ("share_mean", "norm_over_mean", "retained"))
    does_the_tasks = statistics.fmean(row["retained"] for row in rows) >= 0.5
    unlike = statistics.fmean(row["share_mean"] for row in rows) < 0.5
    return (
        f"the multi-task model keeps {gain} of the experts' gain with a share of {share} of an expert's update and a "
        f"length of {norm}"
        + (": little of any expert, and yet it does the tasks." if does_the_tasks and unlike else ".")
    )


def _change(found: Findings, before: str, after: str) -> str:
    """Differences of seen averages, paired by seed, at the chosen strengths if there are any."""
    rows = at_best(found.merged)
    scores = {(row["group"], row["method"], row["seed"]): row["seen_avg"] for row in rows}
    parts, sizes = [], set()
    for method in dict.fromkeys(row["method"] for row in rows):
        seeds = sorted({seed for group, name, seed in scores if (group, name) == (before, method)})
        gains = [scores[after, method, s] - scores[before, method, s] for s in seeds if (after, method, s) in scores]
        if gains:
            parts.append(f"{without_variant(method)} {spread(gains, '+.1f')}")
            sizes.add(len(gains))
    n = "-".join(map(str, sorted(sizes)))
    words = VARIANTS[any(row["chosen"] for row in rows)]
    return f"seen average {words}, in points, paired by seed (n = {n}): {', '.join(parts)}." if parts else ""


def limits(plans: Sequence[Plan], found: Findings) -> Iterator[str]:
    """What these numbers do not say about other models, 7B above all."""
    config = plans[0].config
    n = len({row["expert"] for row in found.experts})
    rank, width = max(row["rank"] for row in found.experts), min(row["width"] for row in found.experts)
    span = f"span at most {n * rank} of {width}" if n * rank < width else f"can span all {width}"
    yield (
        f"Room: {n} experts of rank {rank} {span} dimensions of a layer here, N r / d = {n * rank / width:.2f}; "
        f"{LARGE}. Updates have less room to miss each other here, so the sizes of interference and cross terms are "
        "not those of a 7B model."
    )
    yield (
        f"Base: all points share one {config.model.name} base and one drawing of {config.benchmark.name}; the seeds "
        "are the experts' alone. Deviations say nothing about another base, another drawing or another benchmark."
    )
    models = len({row["method"] for row in found.merged if row["kind"] == "merged"})
    twice = ", some of them one method at two strengths" if any(row["chosen"] for row in found.merged) else ""
    yield (
        f"Number: {models} merged models are few to rank{twice}. They share their experts and questions, and the "
        "quantities move together (a longer update leaves more of every expert). The strongest of several "
        "correlations is strong partly by being the strongest."
    )
    yield (
        f"Cause: {varied_alone(found)} varied alone. That a quantity goes with the scores does not say that "
        "changing it changes them."
    )
    if any(row["extras"] for row in found.experts):
        yield (
            "Projector: what was trained in full is averaged by every method and is in none of the numbers on updates; "
            "how much of the scores it carries is not measured here."
        )
    yield (
        "Experts: these were trained briefly, on drawn pictures, towards conventions of answering. For a 7B model, "
        "spectra, norms and cosines have to be measured on its own experts (scripts/inspect_adapters.py), and the best "
        "strength chosen on its own val."
    )
