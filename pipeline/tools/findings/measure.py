"""What the findings rest on: every number of every point of a sweep, as rows of plain tables.

A point's `group` is what it shares with the points that differ from it in nothing but the experts' seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from eval.report.results import CHOSEN
from pipeline.plan import Plan, require
from pipeline.program import command, read_overrides
from pipeline.sources import Source
from pipeline.stages.report import changed_settings
from pipeline.tools.findings.relations import PLAIN, Findings, Row, Sums, tell_experts, weights
from robustmerge.analysis.inspection import open_all, shared_modules
from robustmerge.analysis.retention import Kept, has_cross_terms, open_update, what_is_kept
from robustmerge.method import Method
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import UserError

A_INIT = {True: "shared A", False: "independent A"}


def measure(plans: Sequence[Plan]) -> Findings:
    """Everything, each point once. Raises UserError where a merge or a score is missing, naming the command."""
    found = Findings()
    groups = groups_of(plans)
    _check(plans)
    done: set[tuple] = set()
    for plan, group in zip(plans, groups, strict=True):
        about = {"group": group, "seed": plan.config.seed}
        experts = tuple(address.hash8 for address in plan.experts.values())
        asked = [source for source in plan.sources if source.kind in ("multi_task", "merged")]
        titles = {(group, experts, title_of(source), source.address.hash8): source for source in asked}
        sources = {key[2]: source for key, source in titles.items() if key not in done}
        _measure_line(found, plan, sources, about, first=(group, experts) not in done)
        done |= {(group, experts), *titles}
    return found


def groups_of(plans: Sequence[Plan]) -> list[str]:
    """`shared A` or `independent A`, and whatever else of the experts the sweep runs over."""
    points = [read_overrides(plan.config.overrides) for plan in plans]
    swept = sorted({key for point in points for key in point if len({p.get(key) for p in points}) > 1})
    swept = [key for key in swept if key != "seed" and not key.startswith(("merge", "peft.shared_a_init"))]
    return [
        ", ".join(
            ["experts given" if plan.config.experts is not None else A_INIT[plan.config.peft.shared_a_init]]
            + [f"{key}={point.get(key, 'default')}" for key in swept]
        )
        for plan, point in zip(plans, points, strict=True)
    ]


def title_of(source: Source) -> str:
    """The method as tables call it, with what differs from its file; `, chosen` where its strength was chosen."""
    changed = changed_settings(source.method) if source.method is not None else {}
    chosen = source.variant == CHOSEN
    told = [f"{key}={value}" for key, value in changed.items() if not (chosen and key.endswith("strength"))]
    return source.title + (f" ({', '.join(told)})" if told else "") + (f", {CHOSEN}" if chosen else "")


def _check(plans: Sequence[Plan]) -> None:
    needed: list[Address] = []
    for plan in plans:
        if not plan.experts:
            raise UserError("there is no expert to look at: none of the chosen tasks is a seen one (tasks)")
        needed += plan.experts.values()
        for source in plan.sources:
            needed += [source.address, *(plan.score(source, task) for task in source.tasks if task.seen)]
    require(needed, "results are", command("merge_eval"))


def _measure_line(found: Findings, plan: Plan, sources: Mapping[str, Source], about: Row, first: bool) -> None:
    """One point. sources: by title. first: whether its experts have not been measured with another point."""
    adapters = open_all({name: address.path for name, address in plan.experts.items()})
    readers = [open_update(source.address.path, title) for title, source in sources.items()]
    methods = {repr(plain): plain for source in sources.values() if (plain := _plain(source)) is not None}
    methods |= {repr(PLAIN): PLAIN} if first and len({r for a in adapters for r in a.ranks.values()}) == 1 else {}
    gathered = Sums(names=[adapter.name for adapter in adapters])
    for module in sorted(shared_modules(adapters)):
        pairs = [adapter.pair(module) for adapter in adapters]
        gathered.add(pairs, [read(module) for read in readers], methods, module)
    kept = what_is_kept(gathered.inner)
    if first:
        tell_experts(found, gathered, adapters, about)
    if sources:
        _tell_merged(found, plan, gathered, sources, kept, about)
        _tell_grid(found, plan, sources, about)


def _plain(source: Source) -> Method | None:
    """The method at strength 1, if its cross terms can be told: they do not depend on the strength."""
    return replace(source.method, strength=1.0) if has_cross_terms(source.method) else None


def _tell_merged(
    found: Findings, plan: Plan, gathered: Sums, sources: Mapping[str, Source], kept: Sequence[Kept], about: Row
) -> None:
    norms = gathered.inner.experts.diagonal().sqrt()
    tasks = {task.name: task for task in plan.config.seen if task.name in gathered.names}
    by_kind = {source.kind: source for source in plan.sources}
    own = {source.tasks[0].name: source for source in plan.sources if source.kind == "expert"}

    def score(source: Source, task: str) -> float:
        return read_score(plan.score(source, tasks[task]).path).value

    zero = {task: score(by_kind["zero_shot"], task) for task in tasks}
    best = {task: score(own[task], task) for task in tasks if task in own}
    for (title, source), one in zip(sources.items(), kept, strict=True):
        reached = {task: score(source, task) for task in tasks}
        told = about | {"kind": source.kind, "method": title, "address": source.address.short}
        told |= {"chosen": source.variant == CHOSEN}
        told |= {"factor": getattr(source.method, "effective_strength", None)}
        found.merged.append(told | _whole(one, norms) | _scores(zero, best, reached))
        crossed = gathered.crossed.get(repr(_plain(source)))
        if crossed is not None:
            found.cross.append(about | {"method": title} | weights(crossed))
        for i, name in enumerate(gathered.names):
            row = told | {"task": name, "share": float(one.share[i]), "interference": float(one.interference[i])}
            row |= {"distance": float(one.distance[i]), "norm_ratio": one.norm / float(norms[i])}
            row |= {"expert_norm": float(norms[i] / norms.mean())}
            if name in best:
                row |= {"zero_shot": zero[name], "individual": best[name], "merged": reached[name]}
                found.kept.append(row)


def _tell_grid(found: Findings, plan: Plan, sources: Mapping[str, Source], about: Row) -> None:
    """The strengths tried on val: as strength multiplies the whole update, norm and share follow from the default's."""
    for (title, source), default in zip(sources.items(), found.merged[-len(sources) :], strict=True):
        choice = None if source.method is None or source.variant else plan.choices.get(source.method.name)
        for factor, value in sorted(choice.means.items()) if choice else ():
            told = {key: factor * default[key] for key in ("norm_over_mean", "share_mean")}
            found.grid.append(about | {"method": title, "factor": factor, **told, "val_avg": value})


def _whole(kept: Kept, norms: torch.Tensor) -> Row:
    """One number a merged model: means over experts; of interference the median, which a lost expert cannot pull."""
    share = kept.share
    return {
        "norm_over_mean": kept.norm / float(norms.mean()),
        "share_mean": float(share.mean()),
        "share_lowest": float(share.min()),
        "share_highest": float(share.max()),
        "share_spread": float(share.std(correction=0) / share.mean().abs()),
        "interference": statistics.median(map(float, kept.interference)),
        "distance": float(kept.distance.mean()),
        "outside": kept.outside,
    }


def _scores(zero: Mapping[str, float], best: Mapping[str, float], reached: Mapping[str, float]) -> Row:
    """Averages over the tasks that have an expert, and which share of the experts' gain is retained."""
    if not best:
        return {"seen_avg": float("nan"), "retained": float("nan")}
    low, high, own = (statistics.fmean(x[task] for task in best) for x in (zero, best, reached))
    return {"seen_avg": own, "retained": (own - low) / (high - low) if high != low else float("nan")}
