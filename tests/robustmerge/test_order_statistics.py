"""Order statistics and thresholds: held, or from a stream that is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge.method_parts import Prune
from robustmerge.order_statistics import Selector, batch_size_for, kth_smallest
from robustmerge.rules import PRUNE, Limit, kept_ranks, threshold_index

POSITIVE = st.floats(0, 2.0**100, width=32)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-140])
HALVES = st.floats(-60000, 60000, width=16)


def select(pieces: list[list[float]], ranks: list[int], batch: int) -> tuple[list[float], int]:
    """The numbers of those ranks among all pieces, and how often the pieces were given."""
    selector, passes = Selector(lambda n: ranks, batch), 0
    while not selector.is_done:
        for piece in pieces:
            selector.add(torch.tensor(piece, dtype=torch.float32))
        selector.end_pass()
        passes += 1
    assert selector.n == sum(map(len, pieces))
    return selector.values, passes


@settings(max_examples=50, deadline=None)
@given(values=st.lists(POSITIVE, min_size=1, max_size=40), share=st.floats(0, 1))
def test_the_kth_smallest_is_what_sorting_gives(values: list[float], share: float) -> None:
    k = 1 + int(share * (len(values) - 1))
    assert kth_smallest(torch.tensor(values), k) == sorted(np.float32(values))[k - 1]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.lists(NUMBERS, max_size=12), min_size=1, max_size=6).filter(any),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    batch=st.sampled_from([1, 5, 1 << 20]),
)
def test_selection_from_pieces_is_what_sorting_all_of_them_gives(
    pieces: list[list[float]], shares: list[float], batch: int
) -> None:
    everything = sorted(np.float32([x for piece in pieces for x in piece]))
    ranks = [1 + int(share * (len(everything) - 1)) for share in shares]
    found, passes = select(pieces, ranks, batch)
    assert found == [everything[rank - 1] for rank in ranks]
    assert passes <= (2 if batch <= len(everything) else 1)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(HALVES, min_size=1, max_size=30), share=st.floats(0, 1))
def test_numbers_of_half_precision_need_one_pass(values: list[float], share: float) -> None:
    rank = 1 + int(share * (len(values) - 1))
    assert select([values], [rank], batch=1) == ([sorted(values)[rank - 1]], 1)


def test_threads_may_add_at_once() -> None:
    x = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    selector = Selector(lambda n: [1, n // 2, n], batch=5000)
    with ThreadPoolExecutor(4) as pool:
        while not selector.is_done:
            list(pool.map(selector.add, x))
            selector.end_pass()
    everything = x.flatten().sort().values
    assert selector.values == [float(everything[k - 1]) for k in (1, 32000, 64000)]


@pytest.mark.parametrize("lowest", [-2.0, -50.0], ids=["magnitudes", "scores"])
def test_fifty_streams_hold_less_than_150_mb(lowest: float) -> None:
    draw = torch.Generator().manual_seed(0)
    selector = Selector(lambda n: [1, n], batch_size_for(50))
    while not selector.is_done:
        for _ in range(3):
            x = torch.randn(1 << 18, generator=draw)
            x = x.abs() if lowest > -50 else torch.exp(lowest * torch.rand(1 << 18, generator=draw)) * torch.tanh(x)
            selector.add(x)
            held = [selector._upper, *selector._lower.values(), *selector._waiting]
            assert sum(part.nbytes for part in held) < 3e6
        selector.end_pass()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 300), density=st.floats(0.01, 1), levels=st.integers(1, 50))
def test_exact_keeps_exactly_the_fraction_and_the_others_keep_equal_values_together(
    n: int, density: float, levels: int
) -> None:
    x = torch.randint(1, levels + 1, (1, n), generator=torch.Generator().manual_seed(n)).float()
    for count in ("exact", "authors", "released", "at_least"):
        (pruned,) = PRUNE["magnitude"]([x], Prune("magnitude", density, count=count), None, [])
        kept = pruned != 0
        assert torch.equal(pruned[kept], x[kept])
        assert int(kept.sum()) >= int(n * density)
        if count == "exact":
            assert int(kept.sum()) == int(n * density)
        elif kept.any() and not kept.all():
            assert x[kept].min() > x[~kept].max()
    assert threshold_index(n, density, "authors") == n - int(n * density)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 300), density=st.floats(0.01, 1), skip=st.floats(0, 0.99), in_blocks=st.booleans())
def test_skipping_drops_the_largest_and_never_more_than_density_leaves(
    n: int, density: float, skip: float, in_blocks: bool
) -> None:
    x = torch.randperm(n, generator=torch.Generator().manual_seed(n)).float() + 1
    prune = Prune("magnitude", density, count="at_least", skip=skip)
    limits = None
    if in_blocks:
        low, high = kept_ranks(n, prune)
        limits = [Limit(low, high)]  # the number of rank k is k
    (pruned,) = PRUNE["magnitude"]([x], prune, limits, [])
    kept = pruned[pruned != 0].sort().values.tolist()
    dropped = min(int(n * skip), n - int(n * density))
    assert kept == list(range(n - dropped - int(n * density) + 1, n - dropped + 1))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), limit=st.integers(0, 12))
def test_a_limit_keeps_what_is_at_least_as_large(n: int, limit: int) -> None:
    x = torch.randint(-10, 11, (n,), generator=torch.Generator().manual_seed(n)).float()
    (pruned,) = PRUNE["magnitude"]([x], Prune("magnitude", 0.5), [Limit(limit)], [])
    assert torch.equal(pruned, torch.where(x.abs() >= limit, x, 0.0))
