"""PCB-Merging: entries compete by their size within an expert and their agreement with the other experts.

https://arxiv.org/abs/2410.02396, with X_n all entries of expert n in a range (a tensor, or the whole model), N experts,
and minmax(x) = (x - min x) / (max x - min x):

    a_n    = |X_n|, clamped at its quantiles c and 1 - c                        c = 1e-4; vision: 1e-2
    beta_n = exp(N minmax(a_n)^2) tanh(X_n sum_m X_m)                           vision: sum_m sign(X_m) minmax(a_m)
    S_n    = minmax(beta_n, clamped from below at its 1 - density quantile)
    merged = sum_n S_n sign(X_n) a_n / sum_n S_n                                0 where all scores are 0

Published code: two programs that differ as said; where max = min it gives NaN, while here minmax is 1 for what is
positive and 0 for zeros, so that an expert of zeros scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.method_parts import Balance

CLAMP = {"main": 1e-4, "vision": 1e-2}


class Bounds(NamedTuple):
    """Bounds of one expert over the range: where magnitudes are clamped, and the lowest and highest clamped score."""

    low: float
    high: float
    least: float = 0.0
    most: float = 0.0


def magnitude_ranks(n: int, balance: Balance) -> list[int]:
    """The ranks (from 1) of the lower and upper quantile among n sorted magnitudes, as the authors count them."""
    c = CLAMP[balance.variant]
    return [int(n * c) + 1, int(n * (1 - c) - 1) + 1]


def score_ranks(n: int, balance: Balance) -> list[int]:
    """The ranks (from 1) of the 1 - density quantile and of the highest among n sorted scores."""
    return [min(int(n * (1 - balance.density)), n - 1) + 1, n]


def score(xs: Sequence[Tensor], balance: Balance, bounds: Sequence[Bounds]) -> list[Tensor]:
    """beta_n before clamping, times exp(-N): minmax cancels the factor, and nothing overflows for any N."""
    sizes = [_minmax(x.abs(), b.low, b.high) for x, b in zip(xs, bounds, strict=True)]
    others = torch.zeros_like(xs[0])
    for x, size in zip(xs, sizes, strict=True):
        others += torch.sign(x) * size if balance.variant == "vision" else x
    return [
        torch.exp(len(xs) * (size.square() - 1)) * torch.tanh(x * others) for x, size in zip(xs, sizes, strict=True)
    ]


def merge_balanced(xs: Sequence[Tensor], balance: Balance, bounds: Sequence[Bounds]) -> Tensor:
    """The mean of the clamped x_n, weighted by their scores."""
    merged, total = torch.zeros_like(xs[0]), torch.zeros_like(xs[0])
    for x, beta, b in zip(xs, score(xs, balance, bounds), bounds, strict=True):
        share = _minmax(beta, b.least, b.most)
        merged += torch.sign(x) * x.abs().clamp_(b.low, b.high) * share
        total += share
    return merged / total.clamp_(min=1e-12)  # the authors' least divisor


def _minmax(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp x to [low, high] and map that to [0, 1]; if both are equal, 1 for positive values at least as large."""
    return (x.clamp(low, high) - low) / (high - low) if high > low else ((x >= high) & (x > 0)).float()
