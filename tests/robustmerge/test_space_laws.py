"""Laws of the spaces, in memory.

Sums agree in every space, one expert comes back from each as it was, and merging in blocks changes nothing.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge import spaces
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method
from robustmerge.method_parts import Prune
from robustmerge.spaces import SPACES
from tests.law_cases import ELEMENTWISE, EVERYWHERE, MODULES, SEEDS, assert_same, draw, merge


@settings(max_examples=20, deadline=None)
@given(
    seed=SEEDS,
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    weights=st.lists(st.sampled_from([1.0, 0.0, -0.5, 3.0]), min_size=5, max_size=5),
    combine=st.sampled_from(["sum", "mean"]),
)
def test_sums_agree_in_delta_knots_core_and_as_sums_of_products(
    seed: int, ranks: list[int], weights: list[float], combine: str
) -> None:
    experts = draw(seed, "abcde"[: len(ranks)], tuple(ranks))
    share = dict(zip(experts, weights, strict=False))
    expected = {m: sum(share[name] * experts[name][m].delta() for name in experts) for m in MODULES}
    for changes in ({"space": "delta"}, {"space": "knots"}, {"space": "core"}, {"product": "each"}):
        method = Method("sum", strength=0.7, combine=combine, weights=share, **changes)
        assert_same(merge(experts, method), expected, times=0.7 / (len(ranks) if combine == "mean" else 1))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, ranks=st.lists(st.integers(1, 25), min_size=1, max_size=4), zero=st.booleans())
@pytest.mark.parametrize("space", ["delta", "knots", "core"])
def test_the_sum_of_coordinates_is_the_sum_of_the_updates(space: str, seed: int, ranks: list[int], zero: bool) -> None:
    """Whatever the ranks: together more or less than the module has dimensions, or without a direction at all."""
    experts = draw(seed, "abcd"[: len(ranks)], tuple(ranks))
    for module in MODULES:
        pairs = [experts[name][module] for name in experts]
        pairs[0] = LoraPair(pairs[0].A * (not zero), pairs[0].B)
        coded = SPACES[space](pairs, Method("sum", space, 1.0))
        merged = {part: torch.cat([sum(block()) for block in blocks]) for part, blocks in coded.parts.items()}
        update = coded.decode(merged)
        found = update.delta() if isinstance(update, LoraPair) else update
        assert_same({module: found}, {module: sum(pair.delta() for pair in pairs)})


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 30))
@pytest.mark.parametrize("combine", ["sum", "mean", "elected"])
@pytest.mark.parametrize("space", SPACES)
def test_one_expert_and_a_neutral_method_give_back_its_update(space: str, combine: str, seed: int, rank: int) -> None:
    (name, expert), *_ = draw(seed, "a", (rank,)).items()
    method = Method("neutral", space, 1.0, prune=Prune("magnitude", 1.0), combine=combine)
    assert_same(merge({name: expert}, method), {m: pair.delta() for m, pair in expert.items()})


@settings(max_examples=3, deadline=None)
@given(seed=SEEDS, block=st.sampled_from([1, 50, 200]))
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_merging_a_dense_update_block_by_block_changes_nothing(name: str, seed: int, block: int) -> None:
    balanced = EVERYWHERE[name].combine == "balanced"  # rounding decides between equal scores, so there should be none
    experts = draw(seed, grid=not balanced)
    whole = merge(experts, EVERYWHERE[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spaces, "BLOCK", block)
        blocks = merge(experts, EVERYWHERE[name])
    if balanced:
        assert_same(blocks, whole)
    else:
        assert all(torch.equal(whole[m], blocks[m]) for m in MODULES)
