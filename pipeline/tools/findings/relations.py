"""How what a merge leaves of the experts goes with what it scores: rank correlations, nothing more."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import torch

from robustmerge.analysis.retention import Crossed, Inner, compare_B, cross_terms, inner_products
from robustmerge.formats.adapter import Adapter, LoraPair
from robustmerge.low_rank import Spectrum, compare_A, decompose
from robustmerge.method import Method

MIN_GAP = 5.0  # percentage points between zero-shot and the expert, below which a share of them says nothing
FEWEST = 4  # values below which no rank correlation is told
OF_POINTS = {  # of a merged model and an expert
    "share": "share of the expert left",
    "interference": "interference",
    "distance": "distance to the expert",
    "norm_ratio": "length of the merge / this expert's",
    "expert_norm": "this expert's length / their mean",
}
OF_METHODS = {  # of a merged model
    "norm_over_mean": "length of the merge / experts' mean",
    "share_mean": "share left, mean of experts",
    "share_lowest": "share left, lowest of experts",
    "share_spread": "share left, spread over experts",
    "interference": "interference, median of experts",
    "distance": "distance, mean of experts",
    "outside": "part of no expert",
}

Row = dict[str, Any]

PLAIN = Method(name="plain_sum", strength=1.0)  # (sum of B)(sum of A), nothing pruned and nothing scaled


def retained(row: Row) -> float | None:
    """(merged - zero-shot) / (individual - zero-shot) on the expert's own task; None where the gap is too small."""
    gap = row["individual"] - row["zero_shot"]
    return (row["merged"] - row["zero_shot"]) / gap if gap >= MIN_GAP else None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs. NaN for fewer than 4 or equal values.

    >>> round(rank_correlation([1, 2, 3, 4], [10, 100, 1000, 1001]), 3)
    1.0
    """
    there = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a) and not math.isnan(b)]
    if len(there) < FEWEST:
        return math.nan
    one, other = (_ranks(values) for values in zip(*there, strict=True))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Iterable[float]) -> np.ndarray:
    _, place, counts = np.unique(np.array(list(values)), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


@cache
def chance_level(n: int, draws: int = 4000) -> float:
    """What |rank correlation| of two unrelated orders of n things exceeds once in twenty times."""
    if n < FEWEST:
        return math.nan
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n, dtype=float), (draws, 1)), axis=1)
    centre = (n - 1) / 2
    rho = (orders - centre) @ (np.arange(n) - centre) / (n * (n**2 - 1) / 12)
    return float(np.percentile(np.abs(rho), 95))


def merged_only(rows: Iterable[Row]) -> list[Row]:
    """Merged models alone, without the multi-task model."""
    return [row for row in rows if row["kind"] == "merged"]


def at_best(rows: Iterable[Row]) -> list[Row]:
    """Merged models at the strength chosen on val; all of them where none was chosen."""
    merged = merged_only(rows)
    return [row for row in merged if row["chosen"]] or merged


def each_once(rows: Iterable[Row]) -> list[Row]:
    """Merged models, each address once a group and seed: a chosen strength may be the default one."""
    found: dict[tuple, Row] = {}
    for row in merged_only(rows):
        found.setdefault((row["group"], row["seed"], row["address"], row.get("task")), row)
    return list(found.values())


def relate(found: Findings) -> list[Row]:
    """A row a group, scope and quantity: the mean and deviation over seeds of a rank correlation; n: values in one.

    scope points: retained share over methods and tasks. within_task: over methods, mean of the tasks. within_method:
    over tasks, mean of the methods. methods: seen average over methods.
    """
    points = [row | {"retained": x} for row in each_once(found.kept) if (x := retained(row)) is not None]
    rows = []
    for group in dict.fromkeys(row["group"] for row in found.merged):
        own = [row for row in points if row["group"] == group]
        for key in OF_POINTS:
            scopes = {"points": lambda row: 0, "within_task": _task, "within_method": _method}
            rows += [_relation(group, scope, key, own, "retained", by) for scope, by in scopes.items()]
        models = [row for row in each_once(found.merged) if row["group"] == group]
        rows += [_relation(group, "methods", key, models, "seen_avg", lambda row: 0) for key in OF_METHODS]
    return rows


def _task(row: Row) -> str:
    return row["task"]


def _method(row: Row) -> str:
    return row["method"]


def _relation(group: str, scope: str, key: str, rows: Sequence[Row], outcome: str, by: Callable[[Row], Any]) -> Row:
    """Correlations of `key` with `outcome` among rows alike in `by`; their mean in each seed, then over seeds."""
    by_seed, sizes = [], []
    for seed in sorted({row["seed"] for row in rows}):
        alike = sorted((row for row in rows if row["seed"] == seed), key=by)
        found = []
        for _, members in groupby(alike, key=by):
            members = list(members)
            found.append(rank_correlation([row[key] for row in members], [row[outcome] for row in members]))
            sizes.append(len(members))
        told = [rho for rho in found if not math.isnan(rho)]
        if told:
            by_seed.append(statistics.fmean(told))
    return {
        "group": group,
        "scope": scope,
        "quantity": key,
        "rho": statistics.fmean(by_seed) if by_seed else math.nan,
        "deviation": statistics.stdev(by_seed) if len(by_seed) > 1 else math.nan,
        "seeds": len(by_seed),
        "n": max(sizes, default=0),
        "n_in_all": sum(sizes),
    }


@dataclass(frozen=True)
class Findings:
    """Tables, a mapping a row; all begin with group and seed.

    experts: one an expert. spectra: one an expert and index k, s_k / s_1 as the mean over modules. pairs: one a pair
    of experts. merged: one a merged model (and the multi-task model). kept: one a merged model and expert, with the
    scores on the expert's own task. cross: one a sum of factors, with what its cross terms weigh. grid: one a method
    and factor of its default update, with the mean score on val.
    """

    experts: list[Row] = field(default_factory=list)
    spectra: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    merged: list[Row] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)
    cross: list[Row] = field(default_factory=list)
    grid: list[Row] = field(default_factory=list)


@dataclass
class Sums:
    """What is gathered on the way through the modules."""

    names: list[str]
    inner: Inner | None = None
    crossed: dict[str, Crossed] = field(default_factory=dict)
    spectra: list[list[Spectrum]] = field(default_factory=list)  # of every module
    a_cosines: list[torch.Tensor] = field(default_factory=list)
    b_cosines: list[torch.Tensor] = field(default_factory=list)

    def add(self, pairs: Sequence[LoraPair], merged: Sequence[Any], methods: Mapping[str, Method], module: str) -> None:
        inner = inner_products(pairs, merged)
        self.inner = self.inner.plus(inner) if self.inner else inner
        self.spectra.append([decompose(pair) for pair in pairs])
        self.a_cosines.append(compare_A(pairs))
        self.b_cosines.append(compare_B(pairs))
        for key, method in methods.items():
            crossed = cross_terms(dict(zip(self.names, pairs, strict=True)), method, module)
            self.crossed[key] = self.crossed[key].plus(crossed) if key in self.crossed else crossed


def tell_experts(found: Findings, gathered: Sums, adapters: Sequence[Adapter], about: Row) -> None:
    """The rows of the experts and their pairs."""
    names, norms = gathered.names, gathered.inner.experts.diagonal().sqrt()
    for i, adapter in enumerate(adapters):
        s = [spectra[i].s for spectra in gathered.spectra if len(spectra[i].s)]
        row = about | {"expert": names[i], "rank": max(adapter.ranks.values()), "width": _width(adapter)}
        row |= {"modules": len(gathered.spectra), "extras": len(adapter.extras), "norm": float(norms[i])}
        row |= {"norm_over_mean": float(norms[i] / norms.mean())}
        row |= {"first_over_last": statistics.median([float(x[0] / x[-1]) for x in s] or [float("nan")])}
        stable = [float(x.square().sum() / x[0] ** 2) for x in s]
        found.experts.append(row | {"stable_rank": statistics.median(stable or [0.0])})
        for k in range(max(map(len, s), default=0)):
            values = [float(x[k] / x[0]) for x in s if len(x) > k]
            found.spectra.append(about | {"expert": names[i], "k": k + 1, "relative": statistics.fmean(values)})
    a_cosine, b_cosine = (torch.stack(x).mean(0) for x in (gathered.a_cosines, gathered.b_cosines))
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            cosine = gathered.inner.experts[i, j] / (norms[i] * norms[j])
            row = about | {"one": names[i], "other": names[j], "update_cosine": float(cosine)}
            found.pairs.append(row | {"a_cosine": float(a_cosine[i, j]), "b_cosine": float(b_cosine[i, j])})
    if repr(PLAIN) in gathered.crossed:
        found.cross.append(about | {"method": "plain sums of A and B"} | weights(gathered.crossed[repr(PLAIN)]))


def _width(adapter: Adapter) -> int:
    """The fewest dimensions that an update of it has to lie in."""
    return min(min(d_out, d_in) for d_out, _, d_in in adapter.shapes.values())


def weights(crossed: Crossed) -> Row:
    """What cross terms weigh, as part of a row."""
    return {"weight": crossed.weight, "cosine": crossed.cosine}
