"""The rules a merge method is made of: pure functions on stacks of T experts, and the tables that name them.

A stack is a float32 tensor [T, ...]: one part (A, B, or the dense update M) of one module of all experts.
To add a rule: a function here, an entry in its table, its name in `method.py`, a test, a config.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from robustmerge.method import Prune, Scale

RANK_AXIS = {"A": 1, "B": 2}  # A [T, r, d_in], B [T, d_out, r]


def generator_for(seed: int, task: str, module: str, part: str) -> torch.Generator:
    """The random source of one tensor: it depends on these four and on nothing else."""
    digest = hashlib.sha256("\0".join((str(seed), task, module, part)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# --- prune: which entries survive --------------------------------------------------------------------------------


def threshold_index(n: int, density: float, count: str) -> int:
    """k such that the entries at least as large as the k-th smallest of n are kept; below 1: all of them.

    Three rules are in use: TIES' authors (n - int(n d)), RobustMerge's released code (int(n (1 - d))), and exactly
    int(n d) entries. With the first two, equal values at the threshold are all kept.
    """
    if count == "authors":
        return n - int(n * density)
    if count == "released":
        return int(n * (1 - density))
    return n - int(n * density) + 1


def kth_smallest(values: Tensor, k: int) -> float:
    """The k-th smallest (from 1) of float32 values that are not negative.

    Their bit patterns order like the numbers, and partitioning integers is the fastest exact way on a CPU.
    """
    bits = values.contiguous().view(-1).numpy().view(np.int32)
    return float(np.partition(bits, k - 1)[k - 1 : k].view(np.float32)[0])


def keep_all(stack: Tensor, prune: Prune, draws: Sequence[torch.Generator]) -> Tensor:
    """Every entry."""
    return torch.ones_like(stack, dtype=torch.bool)


def keep_largest(stack: Tensor, prune: Prune, draws: Sequence[torch.Generator]) -> Tensor:
    """The largest magnitudes of each expert's tensor (the mask of equation 2)."""
    return torch.stack([_largest(x.abs(), prune) for x in stack])


def _largest(magnitudes: Tensor, prune: Prune) -> Tensor:
    n = magnitudes.numel()
    k = threshold_index(n, prune.density, prune.count)
    if k < 1:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    if k > n:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    threshold = kth_smallest(magnitudes, k)
    if prune.count != "exact":
        return magnitudes >= threshold
    kept = (magnitudes > threshold).flatten()
    equal = (magnitudes == threshold).flatten().nonzero().flatten()
    kept[equal[: n - k + 1 - int(kept.sum())]] = True  # of equal values the first ones
    return kept.view_as(magnitudes)


def keep_random(stack: Tensor, prune: Prune, draws: Sequence[torch.Generator]) -> Tensor:
    """Each entry with probability density (DARE, https://arxiv.org/abs/2311.03099)."""
    masks = [torch.rand(x.shape, generator=draw) < prune.density for x, draw in zip(stack, draws, strict=True)]
    return torch.stack(masks)


def smallest_density(x: Tensor, rank_axis: int, count: str) -> float | None:
    """The smallest density, to 4 decimals, at which magnitude pruning of x [., .] leaves no rank row empty.

    None if a row is zero: then there is none.
    """
    largest = x.abs().amax(1 - rank_axis).min()  # of the weakest row
    if largest == 0:
        return None
    n, below = x.numel(), int((x.abs() < largest).sum())
    step = max(1, math.floor((1 - (below + 2) / n) * 10_000))
    while threshold_index(n, step / 10_000, count) > below + 1:
        step += 1
    return step / 10_000


# --- scale: by how much each rank index is multiplied ------------------------------------------------------------


def rank_scales(full: Tensor, pruned: Tensor, rank_axis: int, scale: Scale) -> tuple[Tensor, Tensor]:
    """What pruning took from each rank index, for every expert.

    S_n[i] = sum_j |x_n[i, j]| / sum_j |x~_n[i, j]| (equation 3); if normalize, S_n[i] / sum_m S_m[i] (equation 4).
    full, pruned: [T, r, d] with rank_axis 1, or [T, d, r] with rank_axis 2.
    Returns the scales [T, r] and where a row is empty, so that it has none [T, r]; there the scale is 0.
    Published code: before equation 4 all scales of an expert are raised to sorted(S_n)[int(0.8 r)], our `floor`.
    """
    before = full.abs().sum(3 - rank_axis)  # [T, r]
    after = pruned.abs().sum(3 - rank_axis)
    empty = after == 0
    ratio = torch.where(empty, 0.0, before / after)  # >= 1 elsewhere
    for row, gone in zip(ratio, empty, strict=True):
        there = row[~gone].sort().values
        if len(there):
            row[~gone] = row[~gone].clamp(min=there[int(scale.floor * len(there))])
    if scale.normalize:
        total = ratio.sum(0)  # [r]
        ratio = torch.where(total > 0, ratio / total, 0.0)
    return ratio, empty


# --- combine: from T experts to one ------------------------------------------------------------------------------


def combine_sum(stack: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_n w_n x_n, added in the order of the experts' names: the same bytes on every run."""
    total = torch.zeros_like(stack[0])
    for x, weight in zip(stack, weights, strict=True):
        total.add_(x, alpha=weight)
    return total


def combine_mean(stack: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_n w_n x_n / T."""
    return combine_sum(stack, weights) / len(stack)


PRUNE: dict[str, Callable[[Tensor, Prune, Sequence[torch.Generator]], Tensor]] = {
    "none": keep_all,
    "magnitude": keep_largest,
    "random": keep_random,
}
COMBINE: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {"sum": combine_sum, "mean": combine_mean}
