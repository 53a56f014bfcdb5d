"""The rules that merge methods consist of (prune, scale, combine): pure functions on the T experts of one tensor.

Every rule takes the experts' tensors as a list of T float32 tensors of one shape: a part (A or B) in factor space,
a block of the dense update, or its coordinates in another basis. To add a rule: a function here, an entry in its
table, its name in `method.py`, a test, a config.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink
from torch.nn.utils.rnn import pad_sequence

from robustmerge.method import Method, Prune, Scale
from robustmerge.order_statistics import kth_smallest
from robustmerge.pcb import Bounds, merge_balanced

RANK_AXIS = {"A": 0, "B": 1}  # A [r, d_in], B [d_out, r]

Draws = Sequence[torch.Generator]
Limits = Sequence[float]  # an expert's smallest magnitude that is kept


@dataclass(frozen=True)
class Statistics:
    """Statistics over several tensors that a method needs before it can merge any; None: every tensor has its own.

    limits: of magnitude pruning, an expert's smallest magnitude that is kept. majority: of an election, the sign that
    wins where the sum is zero. bounds: of combine=balanced, between what an expert's magnitudes and scores are.
    collected: what a method's own function has collected over the model.
    """

    limits: tuple[float, ...] | None = None
    majority: int | None = None
    bounds: tuple[Bounds, ...] = ()
    collected: Any = None


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


def keep_all(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep every entry."""
    return xs


def keep_largest(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep the largest magnitudes of each expert (the mask of equation 2; the trimming of TIES).

    limits: where the threshold covers more than these tensors; otherwise every tensor has its own.
    """
    if limits is None:
        return [trim(x, prune.density, prune.count) for x in xs]
    return [_at_least(x, limit) for x, limit in zip(xs, limits, strict=True)]


def trim(x: Tensor, density: float, count: str) -> Tensor:
    """Zero all but the largest magnitudes of x; see `threshold_index`."""
    n = x.numel()
    k = threshold_index(n, density, count)
    if k < 1:
        return x
    if k > n:
        return torch.zeros_like(x)
    threshold = kth_smallest(x.abs().contiguous(), k)
    if count != "exact":
        return _at_least(x, threshold)
    magnitudes = x.abs()
    kept = (magnitudes > threshold).flatten()
    equal = (magnitudes == threshold).flatten().nonzero().flatten()
    kept[equal[: n - k + 1 - int(kept.sum())]] = True  # of equal values the first ones
    return x * kept.view_as(x)


def _at_least(x: Tensor, limit: float) -> Tensor:
    """x where |x| >= limit, 0 elsewhere; hardshrink keeps what is larger than its argument, in one pass."""
    return x if limit <= 0 else hardshrink(x, float(np.nextafter(np.float32(limit), np.float32(0))))


def keep_random(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep each entry with probability `density` (DARE, https://arxiv.org/abs/2311.03099)."""
    # Drawn on the CPU wherever x is: the same entries on every device. In place: a mask of bools takes twice as long.
    kept = (torch.rand(x.shape, generator=draw).lt_(prune.density) for x, draw in zip(xs, draws, strict=True))
    return [ones.to(x.device).mul_(x) for x, ones in zip(xs, kept, strict=True)]


def keep_agreeing(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep the entries that have the sign of their sum over experts (figure 5b, "aggregated sign")."""
    signs = torch.sign(sum_of(xs))
    return [x * (torch.sign(x) == signs) for x in xs]


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


def rank_sums(xs: Sequence[Tensor], rank_axis: int) -> Tensor:
    """sum_j |x_n[i, j]| for every rank index [T, R]; experts of a smaller rank than R have zeros behind it.

    xs: [r_n, d] with rank_axis 0, or [d, r_n] with rank_axis 1.
    """
    return pad_sequence([x.abs().sum(1 - rank_axis) for x in xs], batch_first=True)


def rank_scales(before: Tensor, after: Tensor, scale: Scale) -> Tensor:
    """Scales that restore what pruning took: S_n[i] = sum_j |x_n[i, j]| / sum_j |x~_n[i, j]| (equation 3), [T, R].

    before, after: the two sums [T, R]; the scale is 0 where nothing is left, or where an expert has no such index.
    normalize: S_n[i] / sum_m S_m[i] (equation 4). An expert that lacks the module has nothing to sum, so its scale is 0
    and it takes no part; the paper says nothing of such experts, and the released code makes 0/0 of zeros.
    Published code: before equation 4 the scales of an expert are raised to sorted(S_n)[int(0.8 r)], our `floor`, which
    the paper does not have.
    """
    defined = after > 0
    scales = torch.where(defined, before / after, 0.0)  # >= 1 where there is one
    if scale.floor:
        n = defined.sum(1)
        place = scales.shape[1] - n + (scale.floor * n.double()).long()  # after the zeros
        lowest = scales.sort(1).values.gather(1, place.clamp(max=scales.shape[1] - 1)[:, None])
        scales = torch.where(defined, scales.maximum(lowest), 0.0)
    if scale.normalize:
        total = scales.sum(0)
        scales = torch.where(total > 0, scales / total, 0.0)
    return scales


# --- combine: from T experts to one ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Election:
    """The outcome of a sign election: the sum of the signs, and whether an entry not zero everywhere had no winner."""

    signs: int = 0
    undecided: bool = False

    @classmethod
    def of(cls, elections: Sequence[Election]) -> Election:
        """The election over all of their entries."""
        return cls(sum(one.signs for one in elections), any(one.undecided for one in elections))


def sum_of(xs: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """sum_n w_n x_n, added in the order of the experts' names: the same bytes on every run."""
    first, *others = weights or [1.0] * len(xs)
    total = xs[0] * first
    for x, weight in zip(xs[1:], others, strict=True):
        total.add_(x, alpha=weight)
    return total


def elect(xs: Sequence[Tensor], disjoint: str, majority: int | None = None) -> tuple[Tensor, Election]:
    """Elect a sign for each entry and merge the experts that agree with it (TIES, https://arxiv.org/abs/2306.01708).

    g = sign(sum_n x_n); merged = mean (disjoint=mean) or sum (disjoint=sum) of the x_n of sign g.
    Where the sum is 0 the majority of all signs g decides: `majority` (1, or -1, which also stands for a draw), or,
    if it is None, that of these entries, as in the authors' code.
    """
    signs = sum_of(xs).sign_()
    votes = int(signs.sum(dtype=torch.float64))
    zero = 1 - signs.abs()  # 1 where the sum is 0; masks of bools take several times as long
    signs.add_(zero, alpha=majority if majority is not None else (1 if votes > 0 else -1))
    merged, count = torch.zeros_like(signs), torch.zeros_like(signs)
    for x in xs:
        agreeing = (x * signs).clamp_(min=0)
        merged += agreeing
        count += agreeing.sign_()
    undecided = bool((zero * merged).any())  # numbers whose sum is 0 are all 0 or of both signs
    if disjoint == "mean":
        merged /= count.clamp_(min=1)
    return merged.mul_(signs), Election(votes, undecided)


def combine_sum(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """sum_n x_n."""
    return sum_of(xs), Election()


def combine_mean(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """sum_n x_n / T."""
    return sum_of(xs) / len(xs), Election()


def combine_elected(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """Merge the entries that agree with the elected sign, see `elect`."""
    return elect(xs, method.disjoint, statistics.majority)


def combine_balanced(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """The mean weighted by scores, see `pcb.py`."""
    return merge_balanced(xs, method.balance, statistics.bounds), Election()


PRUNE: dict[str, Callable[[list[Tensor], Prune, Limits | None, Draws], list[Tensor]]] = {
    "none": keep_all,
    "magnitude": keep_largest,
    "random": keep_random,
    "sign": keep_agreeing,
}


COMBINE: dict[str, Callable[[Sequence[Tensor], Method, Statistics], tuple[Tensor, Election]]] = {
    "sum": combine_sum,
    "mean": combine_mean,
    "elected": combine_elected,
    "balanced": combine_balanced,
}
