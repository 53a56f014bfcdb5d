"""How what a merge leaves of the experts goes with what it scores: rank correlations, nothing more."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np

from scripts.findings_experts import Findings, Row

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
