"""Rank correlations of what a merge leaves of the experts with what it scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np

MIN_GAP = 5.0  # percentage points between zero-shot and the expert, below which a share of them says nothing
FEWEST = 4  # values below which there is no rank correlation
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


@dataclass(frozen=True)
class Findings:
    """Tables, a mapping a row; all begin with group and seed.

    experts: one an expert. spectra: one an expert and index k, s_k / s_1 as the mean over modules. pairs: one a pair
    of experts. merged: one a merged model (and the multi-task model); variant is empty as configured, `chosen` at the
    strength chosen on val. kept: one a merged model and expert, with the scores on the expert's own task. cross: one a
    sum of factors, with what its cross terms weigh; kind `plain`: nothing pruned and nothing scaled. grid: one a method
    and factor of its default update, with the mean score on val.
    """

    experts: list[Row] = field(default_factory=list)
    spectra: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    merged: list[Row] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)
    cross: list[Row] = field(default_factory=list)
    grid: list[Row] = field(default_factory=list)


def retained(row: Row) -> float | None:
    """(merged - zero-shot) / (individual - zero-shot) on the expert's own task; None where the gap is too small."""
    gap = row["individual"] - row["zero_shot"]
    return (row["merged"] - row["zero_shot"]) / gap if gap >= MIN_GAP else None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs. NaN for fewer than 4 or equal values.

    >>> round(rank_correlation([1, 2, 3, 4], [10, 100, 1000, 1001]), 3)
    1.0
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a) and not math.isnan(b)]
    if len(pairs) < FEWEST:
        return math.nan
    one, other = (_ranks(values) for values in zip(*pairs, strict=True))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Iterable[float]) -> np.ndarray:
    _, place, counts = np.unique(np.array(list(values)), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


@cache
def chance_level(n: int, draws: int = 4000) -> float:
    """The |rank correlation| that two unrelated orders of n things exceed with a probability of 5 %."""
    if n < FEWEST:
        return math.nan
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n, dtype=float), (draws, 1)), axis=1)
    centre = (n - 1) / 2
    rho = (orders - centre) @ (np.arange(n) - centre) / (n * (n**2 - 1) / 12)
    return float(np.percentile(np.abs(rho), 95))


def only_merged(rows: Iterable[Row]) -> list[Row]:
    """The merged models, without the multi-task model."""
    return [row for row in rows if row["kind"] == "merged"]


def without_repeats(rows: Iterable[Row]) -> list[Row]:
    """Merged models, each address once a group and seed: a chosen strength may be the default one."""
    unique: dict[tuple, Row] = {}
    for row in only_merged(rows):
        unique.setdefault((row["group"], row["seed"], row["address"], row.get("task")), row)
    return list(unique.values())


def relate(findings: Findings) -> list[Row]:
    """A row a group, scope and quantity: the mean and deviation over seeds of a rank correlation; n: values in one.

    scope points: retained share over methods and tasks. within_task: over methods, mean of the tasks. within_method:
    over tasks, mean of the methods. methods: seen average over methods.
    """
    points = [row | {"retained": x} for row in without_repeats(findings.kept) if (x := retained(row)) is not None]
    scopes: dict[str, tuple[str, ...]] = {
        "points": (),
        "within_task": ("task",),
        "within_method": ("method", "variant"),
    }
    rows = []
    for group in dict.fromkeys(row["group"] for row in findings.merged):
        in_group = [row for row in points if row["group"] == group]
        for quantity in OF_POINTS:
            for scope, keys in scopes.items():
                rows.append(_relation(group, scope, quantity, in_group, "retained", keys))
        models = [row for row in without_repeats(findings.merged) if row["group"] == group]
        rows += [_relation(group, "methods", quantity, models, "seen_avg", ()) for quantity in OF_METHODS]
    return rows


def _relation(group: str, scope: str, quantity: str, rows: Sequence[Row], outcome: str, keys: Sequence[str]) -> Row:
    """Correlations of `quantity` with `outcome` among rows alike in `keys`: mean in each seed, then over seeds."""

    def alike(row: Row) -> tuple:
        return tuple(row[key] for key in keys)

    by_seed, sizes = [], []
    for seed in sorted({row["seed"] for row in rows}):
        of_seed = sorted((row for row in rows if row["seed"] == seed), key=alike)
        members = [list(block) for _, block in groupby(of_seed, key=alike)]
        sizes += [len(block) for block in members]
        rhos = [
            rank_correlation([row[quantity] for row in block], [row[outcome] for row in block]) for block in members
        ]
        if defined := [rho for rho in rhos if not math.isnan(rho)]:
            by_seed.append(statistics.fmean(defined))
    return {
        "group": group,
        "scope": scope,
        "quantity": quantity,
        "rho": statistics.fmean(by_seed) if by_seed else math.nan,
        "deviation": statistics.stdev(by_seed) if len(by_seed) > 1 else math.nan,
        "seeds": len(by_seed),
        "n": max(sizes, default=0),
        "n_in_all": sum(sizes),
    }
