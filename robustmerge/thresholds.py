"""Thresholds over a range of tensors, measured before any of them is merged.

The range is one tensor too large to hold, or, with scope=model, every tensor of every module. Tensors are given block
by block and as often as they are asked for; nothing but counts is kept of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.method import Method
from robustmerge.order_statistics import Selector, batch_size_for
from robustmerge.pcb import Bounds, magnitude_ranks, score, score_ranks
from robustmerge.rules import (
    PRUNE,
    Draws,
    Limit,
    Statistics,
    energy_of,
    gain_of,
    generator_for,
    kept_ranks,
    rescale,
    size_of,
    spread_of,
    spread_rank,
)
from robustmerge.spaces import Blocks


class Piece(NamedTuple):
    """One part of one module in a range that is measured. weights: those of the experts in this module.

    absent: the experts that lack the module. Where the range is the whole model, their zeros do not count, so that an
    expert's threshold is over what it has; where it is this module alone, it has nothing but these zeros.
    """

    module: str
    part: str
    blocks: Blocks
    weights: Sequence[float]
    absent: Collection[str] = ()


Visit = Callable[[Callable[[Piece], None]], None]  # calls a function on all pieces of a range
Values = Callable[[Piece], Iterator[list[Tensor]]]  # what is measured of a piece


def pruned_blocks(
    blocks: Blocks,
    method: Method,
    names: Sequence[str],
    where: tuple[str, str],
    statistics: Statistics,
    steps: int | None = None,
) -> Iterator[list[Tensor]]:
    """Prune the blocks of one part by the method's first `steps` prunings (None: all). where: module and part."""
    prunings = method.prunings[:steps]
    module, part = where
    draws: list[Draws] = []
    for number, step in enumerate(prunings):
        stream = part if number == 0 else f"{part}.{number}"
        is_random = step.rule == "random"
        draws.append([generator_for(method.seed, name, module, stream) for name in names] if is_random else ())
    for block in blocks:
        xs = block()
        for step, draw in zip(prunings, draws, strict=True):
            pruned = PRUNE[step.rule](xs, step, statistics.limits, draw)
            xs = rescale(xs, pruned, step, statistics.gains) if step.rescale else pruned
        yield xs


def weigh(xs: Sequence[Tensor], weights: Sequence[float], part: str) -> list[Tensor]:
    """Multiply by the experts' weights: w_n x_n; in factor space only B, so that the update gets the weight once."""
    weights = [1.0] * len(xs) if part == "A" else weights
    return [x if weight == 1 else x * weight for x, weight in zip(xs, weights, strict=True)]


def measure(method: Method, names: Sequence[str], visit: Visit) -> Statistics:
    """Measure a range of tensors for the experts `names`. visit: walks the range, as often as it is called."""
    found = Statistics(majority=1)
    if method.prune.rule in MEASURE_LIMITS:
        found = replace(found, limits=MEASURE_LIMITS[method.prune.rule](method, names, visit))
    if method.prune.rescale == "l1":
        found = replace(found, gains=_measure_gains(method, names, visit, found))
    if method.combine == "balanced":
        found = replace(found, bounds=_measure_bounds(method, names, visit, found))
    if method.weighs_by_energy:
        found = replace(found, energies=_measure_energies(method, names, visit, found))
    return found


def _measure_limits(method: Method, names: Sequence[str], visit: Visit) -> tuple[Limit, ...]:
    """Measure the range of magnitudes of each expert that is kept.

    An earlier step's rescaling keeps the order, so only the limits are rescaled: half-precision values, left as they
    are read, have no lower bits and are selected from in one pass.
    """
    *before, step = method.prunings
    unscaled = replace(method, first=replace(method.first, rescale=False)) if method.first else method

    def magnitudes(piece: Piece) -> Iterator[list[Tensor]]:
        for xs in pruned_blocks(piece.blocks, unscaled, names, (piece.module, piece.part), Statistics(), len(before)):
            yield [x.abs() for x in xs]

    def ranks(n: int) -> list[int]:
        low, high = kept_ranks(n, step)
        return [min(max(low, 1), n), *([high] if step.skip else [])]

    def rescaled(value: float) -> float:
        limit = torch.tensor(value)
        for earlier in before:
            limit = limit / earlier.density if earlier.rescale else limit
        return float(limit)

    def limit(n: int, least: float, most: float = math.inf) -> Limit:
        low, high = kept_ranks(n, step)
        smallest = 0.0 if low < 1 else rescaled(least) if low <= n else math.inf
        return Limit(smallest, rescaled(most) if high < n else math.inf)

    return tuple(limit(n, *values) for n, values in _select(ranks, names, visit, magnitudes))


def _measure_spreads(method: Method, names: Sequence[str], visit: Visit) -> tuple[Limit, ...]:
    """Measure the smallest spread over experts that is kept, the same limit for each."""
    *before, step = method.prunings

    def spreads(piece: Piece) -> Iterator[list[Tensor]]:
        where = piece.module, piece.part
        for xs in pruned_blocks(piece.blocks, method, names, where, Statistics(), len(before)):
            spread = spread_of(xs)
            yield [spread[spread > 0]]

    ((_, values),) = _select(lambda n: [spread_rank(n, step)], ("",), visit, spreads)
    return (Limit(*values or [0.0]),) * len(names)


MEASURE_LIMITS = {"magnitude": _measure_limits, "variance": _measure_spreads}


def _measure_gains(method: Method, names: Sequence[str], visit: Visit, found: Statistics) -> tuple[float, ...]:
    """Measure the factor of each expert by which the sum of its magnitudes becomes what it was before pruning."""
    before, plain = len(method.prunings) - 1, replace(method, prune=replace(method.prune, rescale=False))

    def sizes(piece: Piece) -> Iterator[list[float]]:
        where = piece.module, piece.part
        full, kept = (pruned_blocks(piece.blocks, plain, names, where, found, steps) for steps in (before, None))
        for xs, ys in zip(full, kept, strict=True):
            yield [size_of(x) for x in (*xs, *ys)]

    sums = _sum(sizes, visit)
    return tuple(map(gain_of, sums[: len(names)], sums[len(names) :]))


def _measure_energies(method: Method, names: Sequence[str], visit: Visit, found: Statistics) -> tuple[float, ...]:
    """Measure each expert's sum of squares over what pruning left, its entries multiplied by the expert's weight."""

    def energies(piece: Piece) -> Iterator[list[float]]:
        for xs in pruned_blocks(piece.blocks, method, names, (piece.module, piece.part), found):
            yield [energy_of(x) for x in weigh(xs, piece.weights, piece.part)]

    return tuple(_sum(energies, visit))


def _sum(numbers: Callable[[Piece], Iterator[list[float]]], visit: Visit) -> list[float]:
    """Sum lists of numbers, rounded once, so that the order in which threads add them does not matter."""
    rows: list[list[float]] = []
    visit(lambda piece: rows.extend(list(numbers(piece))))
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def _measure_bounds(method: Method, names: Sequence[str], visit: Visit, found: Statistics) -> tuple[Bounds, ...]:
    """Measure PCB's bounds: first those of the magnitudes, as the scores depend on them."""
    balance = method.balance

    def magnitudes(piece: Piece) -> Iterator[list[Tensor]]:
        for xs in pruned_blocks(piece.blocks, method, names, (piece.module, piece.part), found):
            yield [x.abs() for x in weigh(xs, piece.weights, piece.part)]

    quantiles = _select(lambda n: magnitude_ranks(n, balance), names, visit, magnitudes)
    bounds = [Bounds(*values) for _, values in quantiles]

    def scores(piece: Piece) -> Iterator[list[Tensor]]:
        for xs in pruned_blocks(piece.blocks, method, names, (piece.module, piece.part), found):
            yield score(weigh(xs, piece.weights, piece.part), balance, bounds)

    quantiles = _select(lambda n: score_ranks(n, balance), names, visit, scores)
    return tuple(Bounds(b.low, b.high, *values) for b, (_, values) in zip(bounds, quantiles, strict=True))


def _select(
    ranks: Callable[[int], Sequence[int]], names: Sequence[str], visit: Visit, values: Values
) -> list[tuple[int, list[float]]]:
    """Select from each expert's values, see `Selector`; returns their number and those of the given ranks."""
    selectors = [Selector(ranks, batch_size_for(len(names))) for _ in names]

    def add(piece: Piece) -> None:
        for xs in values(piece):
            for name, selector, x in zip(names, selectors, xs, strict=True):
                if not selector.is_done and name not in piece.absent:
                    selector.add(x)

    while not all(selector.is_done for selector in selectors):
        visit(add)
        for selector in selectors:
            selector.end_pass()
    return [(selector.n, selector.values) for selector in selectors]
