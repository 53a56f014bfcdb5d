"""The rules that merge methods consist of (prune, scale, combine): pure functions on the T experts of one tensor.

Every rule takes the experts' tensors as a list of T float32 tensors of one shape: a part (A or B) in factor space,
a block of the dense update, or its coordinates in another basis. To add a rule: a function here, an entry in its
table, its name in `method_parts.py`, a test, a config.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink
from torch.nn.utils.rnn import pad_sequence

from robustmerge.method import Method
from robustmerge.method_parts import Prune, Scale
from robustmerge.order_statistics import kth_smallest
from robustmerge.pcb import Bounds, merge_balanced

RANK_AXIS = {"A": 0, "B": 1}  # A [r, d_in], B [d_out, r]

Draws = Sequence[torch.Generator]


class Limit(NamedTuple):
    """The range of an expert's magnitudes that is kept, ends included; with rule=variance, of the spreads of all."""

    low: float
    high: float = math.inf


Limits = Sequence[Limit]  # by expert


@dataclass(frozen=True)
class Statistics:
    """Statistics over several tensors that a method needs before it can merge any; None: every tensor has its own.

    limits: of pruning by magnitude or variance. majority: of an election, the sign that wins where the sum is zero.
    bounds: of combine=balanced, between what an expert's magnitudes and scores are. gains: of rescale=l1, by what an
    expert is multiplied. energies: of disjoint=energy, an expert's sum of squares.
    collected: what a method's own function has collected over the model.
    """

    limits: tuple[Limit, ...] | None = None
    majority: int | None = None
    bounds: tuple[Bounds, ...] = ()
    gains: tuple[float, ...] | None = None
    energies: tuple[float, ...] | None = None
    collected: Any = None


def generator_for(seed: int, task: str, module: str, part: str) -> torch.Generator:
    """The random source of one tensor: it depends on these four and on nothing else."""
    digest = hashlib.sha256("\0".join((str(seed), task, module, part)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# --- prune: which entries survive --------------------------------------------------------------------------------


def threshold_index(n: int, density: float, count: str) -> int:
    """Return k such that entries at least as large as the k-th smallest of n are kept; below 1, all are kept.

    k is n - int(n d) for TIES' authors, int(n (1 - d)) for RobustMerge's released code, and n - int(n d) + 1 for
    `exact` and `at_least`. Equal values at the threshold are all kept, except with `exact`, which keeps int(n d).
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

    With `skip` the very largest are dropped (Breadcrumbs, https://arxiv.org/abs/2312.06795).
    limits: where the threshold covers more than these tensors; otherwise every tensor has its own.
    """
    if limits is not None:
        return [_between(x, limit) for x, limit in zip(xs, limits, strict=True)]
    if prune.skip:
        return [_trim_both_ends(x, prune) for x in xs]
    return [trim(x, prune.density, prune.count) for x in xs]


def kept_ranks(n: int, prune: Prune) -> tuple[int, int]:
    """The ranks (from 1) of the smallest and of the largest magnitude of n that magnitude pruning keeps.

    The first is below 1 where all are kept, and above n where none is.
    Published code (mergekit's): where int(n skip) is 0 nothing at all is kept.
    """
    k = threshold_index(n, prune.density, prune.count)
    skipped = min(int(n * prune.skip), k - 1) if 1 <= k <= n else 0
    return k - skipped, n - skipped


def _trim_both_ends(x: Tensor, prune: Prune) -> Tensor:
    n = x.numel()
    low, high = kept_ranks(n, prune)
    if low < 1:
        return x
    if low > n:
        return torch.zeros_like(x)
    magnitudes = x.abs().contiguous()
    least = kth_smallest(magnitudes, low)
    return _between(x, Limit(least, kth_smallest(magnitudes, high) if high < n else math.inf))


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


def _between(x: Tensor, limit: Limit) -> Tensor:
    kept = _at_least(x, limit.low)
    return kept if math.isinf(limit.high) else kept * (x.abs() <= limit.high)


def keep_random(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep each entry with a probability, by default `density` (DARE, https://arxiv.org/abs/2311.03099)."""
    # Drawn on the CPU wherever x is: the same entries on every device. In place: a mask of bools takes twice as long.
    drawn = (torch.rand(x.shape, generator=draw).to(x.device) for x, draw in zip(xs, draws, strict=True))
    return [numbers.lt_(keep_probability(x, prune)).mul_(x) for x, numbers in zip(xs, drawn, strict=True)]


def keep_probability(x: Tensor, prune: Prune) -> Tensor | float:
    """The probability that an entry of x [., n] is kept (DELLA, https://arxiv.org/abs/2406.11617).

    density + epsilon (2 i / (n - 1) - 1), where i from 0 is the place of the entry among its row's sorted magnitudes.
    """
    n = x.shape[-1]
    if not prune.epsilon or n < 2:
        return prune.density
    ordered = torch.linspace(prune.density - prune.epsilon, prune.density + prune.epsilon, n, device=x.device)
    return torch.empty_like(x).scatter_(-1, x.abs().argsort(dim=-1, stable=True), ordered.expand_as(x))


def keep_agreeing(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep the entries that have the sign of their sum over experts (figure 5b, "aggregated sign")."""
    signs = torch.sign(sum_of(xs))
    return [x * (torch.sign(x) == signs) for x in xs]


def keep_varied(xs: list[Tensor], prune: Prune, limits: Limits | None, draws: Draws) -> list[Tensor]:
    """Keep the entries whose variance over experts is largest (SCE, https://arxiv.org/abs/2408.07990).

    Of the k entries with a variance above 0, int(k d) are kept, at least one, and what is equal to the last of them;
    with k = 0, as of one expert alone, all are. Published code (mergekit's): where int(k d) = 0 none is.
    """
    if prune.density == 1:
        return xs
    spread = spread_of(xs)
    if limits is None:
        varied = spread[spread > 0]
        k = spread_rank(len(varied), prune)
        limit = kth_smallest(varied, k) if k else 0.0
    else:
        limit = limits[0].low
    kept = spread >= limit
    return [x * kept for x in xs]


def spread_rank(n: int, prune: Prune) -> int:
    """The rank (from 1) of the smallest of n spreads above 0 that is kept; 0 where there are none."""
    return n - max(int(n * prune.density), 1) + 1


def spread_of(xs: Sequence[Tensor]) -> Tensor:
    """The standard deviation of every entry over the experts; exactly 0 where they are equal."""
    origin = xs[0].double()  # so that no square is too small or too large
    mean = sum((x - origin for x in xs[1:]), torch.zeros_like(origin)) / len(xs)
    squares = sum(((x - origin).sub_(mean).square_() for x in xs), torch.zeros_like(origin))
    return (squares / len(xs)).sqrt_().float()


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


def rescale(
    full: Sequence[Tensor], pruned: Sequence[Tensor], prune: Prune, gains: Sequence[float] | None
) -> list[Tensor]:
    """Restore the size of what pruning kept: divided by the density, or so that sum |x_n| is what it was (l1).

    gains: the factors of l1, where it covers more than these tensors.
    """
    if prune.rescale != "l1":
        return [x / prune.density for x in pruned]
    gains = gains or [gain_of(size_of(x), size_of(y)) for x, y in zip(full, pruned, strict=True)]
    return [x * gain for x, gain in zip(pruned, gains, strict=True)]


def size_of(x: Tensor) -> float:
    """sum |x|."""
    return float(x.abs().sum(dtype=torch.float64))


def gain_of(before: float, after: float) -> float:
    """The factor from one size to another; 1 where nothing is left. Published code: also below 1e-7."""
    return before / after if after else 1.0


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


def average_by_energy(
    xs: Sequence[Tensor], energies: Sequence[float], majority: int | None = None
) -> tuple[Tensor, Election]:
    """Elect a sign for each entry as `elect` does, and average the x_n that agree with it, weighted by their energies.

    SCE (https://arxiv.org/abs/2408.07990). Published code (mergekit's): the weights are equal where the mean squares
    add up to less than 1e-6, and their sum over the agreeing is taken to be 1e-6 where it is smaller.
    """
    largest = max(energies)
    merged, election = elect(xs, "sum", majority)
    signs = merged.sign()
    total, weights = torch.zeros_like(signs), torch.zeros_like(signs)
    for x, energy in zip(xs, energies, strict=True):
        weight = energy / largest if largest else 0.0
        agreeing = (x * signs).clamp_(min=0)
        total.add_(agreeing, alpha=weight)
        weights.add_(agreeing.sign_(), alpha=weight)
    return (total / weights.clamp_(min=torch.finfo(weights.dtype).tiny)).mul_(signs), election


def energy_of(x: Tensor) -> float:
    """sum x^2."""
    return float(x.double().square_().sum())


def combine_sum(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """sum_n x_n."""
    return sum_of(xs), Election()


def combine_mean(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """sum_n x_n / T."""
    return sum_of(xs) / len(xs), Election()


def combine_elected(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """Merge the entries that agree with the elected sign, see `elect` and `average_by_energy`."""
    if method.disjoint == "energy":
        energies = statistics.energies or [energy_of(x) for x in xs]
        return average_by_energy(xs, energies, statistics.majority)
    return elect(xs, method.disjoint, statistics.majority)


def combine_balanced(xs: Sequence[Tensor], method: Method, statistics: Statistics) -> tuple[Tensor, Election]:
    """The mean weighted by scores, see `pcb.py`."""
    return merge_balanced(xs, method.balance, statistics.bounds), Election()


PRUNE: dict[str, Callable[[list[Tensor], Prune, Limits | None, Draws], list[Tensor]]] = {
    "none": keep_all,
    "magnitude": keep_largest,
    "random": keep_random,
    "sign": keep_agreeing,
    "variance": keep_varied,
}


COMBINE: dict[str, Callable[[Sequence[Tensor], Method, Statistics], tuple[Tensor, Election]]] = {
    "sum": combine_sum,
    "mean": combine_mean,
    "elected": combine_elected,
    "balanced": combine_balanced,
}
