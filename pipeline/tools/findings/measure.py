"""Measure the experts, what every merge leaves of them, and the scores, for every point of a sweep.

Points that differ in nothing but the experts' seed are one `group`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from pipeline.addresses import require_complete
from pipeline.plan import Plan
from pipeline.program import command
from pipeline.sources import Source
from pipeline.sweep import describe_point, find_swept_keys, is_of_method
from pipeline.tools.findings.relations import Findings, Row
from robustmerge.analysis.inspection import open_all, shared_modules
from robustmerge.analysis.retention import (
    CrossTerms,
    InnerProducts,
    Retention,
    Update,
    compare_B,
    cross_terms,
    has_cross_terms,
    inner_products,
    measure_retention,
    open_update,
)
from robustmerge.formats.adapter import Adapter, LoraPair
from robustmerge.low_rank import Spectrum, compare_A, decompose
from robustmerge.method import Method
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import UserError

A_INIT = {True: "shared A", False: "independent A"}
PLAIN = Method(name="plain_sum", strength=1.0)  # (sum of B)(sum of A), nothing pruned and nothing scaled
NO_MERGE = InnerProducts(torch.empty(0), torch.empty(0), torch.empty(0))


def measure(plans: Sequence[Plan]) -> Findings:
    """Measure every point of a sweep. Raises UserError where a merge or a score is missing, naming the command."""
    findings = Findings()
    groups = name_groups(plans)
    _check(plans)
    done: set[tuple] = set()
    for plan, group in zip(plans, groups, strict=True):
        point = {"group": group, "seed": plan.config.seed}
        experts = (group, tuple(address.hash8 for address in plan.experts.values()))
        sources = {
            (*experts, method_title(plan, source), source.variant, source.address.hash8): source
            for source in plan.sources
            if source.kind in ("multi_task", "merged")
        }
        new = [source for key, source in sources.items() if key not in done]
        _measure_point(findings, plan, new, point, with_experts=experts not in done)
        done |= {experts, *sources}
    return findings


def name_groups(plans: Sequence[Plan]) -> list[str]:
    """The group of each point: `shared A` or `independent A`, and all other swept settings of the experts."""
    keys = find_swept_keys(plans, ignored=("seed", "merge", "peft.shared_a_init"))
    starts = [A_INIT[p.config.peft.shared_a_init] if p.config.trains else "experts given" for p in plans]
    points = [describe_point(plan, keys) for plan in plans]
    return [f"{start}, {point}" if point else start for start, point in zip(starts, points, strict=True)]


def method_title(plan: Plan, source: Source) -> str:
    """The method as tables call it, with what the command line changes of it; the variant is not part of it."""
    typed = {key: value for key, value in plan.overrides.items() if is_of_method(key) and source.method is not None}
    settings = ", ".join(f"{key.removeprefix('merge.')}={value}" for key, value in typed.items())
    return f"{source.title} ({settings})" if settings else source.title


def _check(plans: Sequence[Plan]) -> None:
    needed: list[Address] = []
    for plan in plans:
        if not plan.experts:
            raise UserError("there is no expert to measure: none of the chosen tasks is a seen one (tasks)")
        needed += plan.experts.values()
        for source in plan.sources:
            needed += [source.address, *(plan.score(source, one) for one in source.eval_sets if one.task.seen)]
    require_complete(needed, "results are", partial(command, "merge_eval"))


@dataclass
class Sums:
    """Sums over the modules of one point, and what is kept of each module. crossed: by method at strength 1."""

    names: list[str]
    inner: InnerProducts = NO_MERGE
    crossed: dict[str, CrossTerms] = field(default_factory=dict)
    spectra: list[list[Spectrum]] = field(default_factory=list)  # [modules][experts]
    a_cosines: list[torch.Tensor] = field(default_factory=list)  # [modules] of [N, N]
    b_cosines: list[torch.Tensor] = field(default_factory=list)  # [modules] of [N, N]

    def add(
        self, pairs: Sequence[LoraPair], merged: Sequence[Update], methods: Mapping[str, Method], module: str
    ) -> None:
        """Add one module: the experts' pairs, the merged updates, and the methods whose cross terms are measured."""
        inner = inner_products(pairs, merged)
        self.inner = self.inner.plus(inner) if self.spectra else inner
        self.spectra.append([decompose(pair) for pair in pairs])
        self.a_cosines.append(compare_A(pairs))
        self.b_cosines.append(compare_B(pairs))
        for key, method in methods.items():
            crossed = cross_terms(dict(zip(self.names, pairs, strict=True)), method, module)
            self.crossed[key] = self.crossed[key].plus(crossed) if key in self.crossed else crossed

    @property
    def norms(self) -> torch.Tensor:
        """||B A||_F of every expert over all modules, [N]."""
        return self.inner.experts.diagonal().sqrt()


def _measure_point(findings: Findings, plan: Plan, sources: Sequence[Source], point: Row, with_experts: bool) -> None:
    """Add the rows of one point. with_experts: its experts have not been measured with another point."""
    adapters = open_all({name: address.path for name, address in plan.experts.items()})
    readers = [open_update(source.address.path, source.label, adapters[0]) for source in sources]
    methods = {repr(method): method for source in sources if (method := _at_strength_1(source)) is not None}
    if with_experts and len({rank for adapter in adapters for rank in adapter.ranks.values()}) == 1:
        methods[repr(PLAIN)] = PLAIN
    sums = Sums(names=[adapter.name for adapter in adapters])
    for module in sorted(shared_modules(adapters)):
        pairs = [adapter.pair(module) for adapter in adapters]
        sums.add(pairs, [read(module) for read in readers], methods, module)
    if with_experts:
        _add_experts(findings, sums, adapters, point)
    if sources:
        _add_merged(findings, plan, sums, sources, point)


def _at_strength_1(source: Source) -> Method | None:
    """The method at strength 1 if it has cross terms, which do not depend on the strength."""
    return replace(source.method, strength=1.0) if has_cross_terms(source.method) else None


def _add_experts(findings: Findings, sums: Sums, adapters: Sequence[Adapter], point: Row) -> None:
    """The rows of the experts, of their spectra, and of their pairs."""
    names, norms = sums.names, sums.norms
    for i, adapter in enumerate(adapters):
        s = [spectra[i].s for spectra in sums.spectra if len(spectra[i].s)]
        row = point | {"expert": names[i], "rank": max(adapter.ranks.values()), "width": _narrowest(adapter)}
        row |= {"modules": len(sums.spectra), "extras": len(adapter.extras), "norm": float(norms[i])}
        row |= {"norm_over_mean": float(norms[i] / norms.mean())}
        row |= {"first_over_last": statistics.median([float(x[0] / x[-1]) for x in s] or [math.nan])}
        stable = [float(x.square().sum() / x[0] ** 2) for x in s]
        findings.experts.append(row | {"stable_rank": statistics.median(stable or [0.0])})
        for k in range(max(map(len, s), default=0)):
            values = [float(x[k] / x[0]) for x in s if len(x) > k]
            findings.spectra.append(point | {"expert": names[i], "k": k + 1, "relative": statistics.fmean(values)})
    a_cosine, b_cosine = (torch.stack(cosines).mean(0) for cosines in (sums.a_cosines, sums.b_cosines))
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            cosine = sums.inner.experts[i, j] / (norms[i] * norms[j])
            row = point | {"one": names[i], "other": names[j], "update_cosine": float(cosine)}
            findings.pairs.append(row | {"a_cosine": float(a_cosine[i, j]), "b_cosine": float(b_cosine[i, j])})
    if crossed := sums.crossed.get(repr(PLAIN)):
        row = point | {"kind": "plain", "method": "plain sums of A and B", "variant": ""}
        findings.cross.append(row | {"weight": crossed.weight, "cosine": crossed.cosine})


def _narrowest(adapter: Adapter) -> int:
    """The smallest dimension of any module of an expert."""
    return min(min(d_out, d_in) for d_out, _, d_in in adapter.shapes.values())


def _add_merged(findings: Findings, plan: Plan, sums: Sums, sources: Sequence[Source], point: Row) -> None:
    """The rows of every merged model: as a whole, by expert, its cross terms, and the strengths tried."""
    tasks = {task.name: task for task in plan.config.seen if task.name in sums.names}
    by_kind = {source.kind: source for source in plan.sources}
    experts = {source.tasks[0].name: source for source in plan.sources if source.kind == "expert"}

    def score(source: Source, task: str) -> float:
        value = read_score(plan.score(source, plan.test_set(tasks[task])).path).value
        return math.nan if value is None else value

    zero_shot = {task: score(by_kind["zero_shot"], task) for task in tasks}
    individual = {task: score(experts[task], task) for task in tasks if task in experts}
    for source, kept in zip(sources, measure_retention(sums.inner), strict=True):
        merged = {task: score(source, task) for task in tasks}
        row = point | {"kind": source.kind, "method": method_title(plan, source), "variant": source.variant}
        model = row | {"address": source.address.short}
        model |= {"factor": source.method.effective_strength if source.method else None}
        findings.merged.append(model | _summarise(kept, sums.norms) | _average(zero_shot, individual, merged))
        _add_strengths(findings, plan, source, findings.merged[-1])
        if crossed := sums.crossed.get(repr(_at_strength_1(source))):
            findings.cross.append(row | {"weight": crossed.weight, "cosine": crossed.cosine})
        for i, name in enumerate(sums.names):
            if name in individual:
                scores = {"zero_shot": zero_shot[name], "individual": individual[name], "merged": merged[name]}
                findings.kept.append(model | {"task": name} | _of_expert(kept, sums.norms, i) | scores)


def _of_expert(kept: Retention, norms: torch.Tensor, i: int) -> Row:
    """What a merged model keeps of one expert, and how long both are."""
    return {
        "share": float(kept.share[i]),
        "interference": float(kept.interference[i]),
        "distance": float(kept.distance[i]),
        "norm_ratio": kept.norm / float(norms[i]),
        "expert_norm": float(norms[i] / norms.mean()),
    }


def _add_strengths(findings: Findings, plan: Plan, source: Source, model: Row) -> None:
    """The strengths tried on val: as strength multiplies the whole update, norm and share follow from the default's."""
    choice = None if source.method is None or source.variant else plan.choices.get(source.method.name)
    for factor, value in sorted(choice.means.items()) if choice else ():
        row = {key: model[key] for key in ("group", "seed", "method")} | {"factor": factor}
        row |= {key: factor * model[key] for key in ("norm_over_mean", "share_mean")}
        findings.grid.append(row | {"val_avg": value})


def _summarise(kept: Retention, norms: torch.Tensor) -> Row:
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


def _average(zero_shot: Mapping[str, float], individual: Mapping[str, float], merged: Mapping[str, float]) -> Row:
    """Averages over the tasks that have an expert, and which share of the experts' gain is retained."""
    if not individual:
        return {"seen_avg": math.nan, "retained": math.nan}
    low, high, seen = (statistics.fmean(x[task] for task in individual) for x in (zero_shot, individual, merged))
    return {"seen_avg": seen, "retained": (seen - low) / (high - low) if high != low else math.nan}
