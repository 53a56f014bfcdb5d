"""Laws of every method in `configs/merge`, in memory.

Whatever the experts are (zero, repeated, two or many, of different ranks), what comes out is finite or refused; larger
experts merge to what is as much larger, and thresholds grow with the experts. Spaces: test_space_laws.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method, read_method
from robustmerge.spaces import SPACES
from robustmerge.stage.settings import UserError
from robustmerge.thresholds import Piece, measure
from tests.law_cases import (
    EVERYWHERE,
    METHODS,
    MODULES,
    SEEDS,
    Experts,
    assert_same,
    draw,
    dropping,
    every_method,
    merge,
    times,
)

# --- which experts there are -------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("factor_A", [0.0, 1.0], ids=["A and B zero", "B zero"])
def test_an_expert_of_zeros_among_others_merges_cleanly(name: str, factor_A: float) -> None:
    experts = draw(0)
    experts["b"] = times(factor_A, 0.0, experts["b"])
    assert all(x.any() for x in merge(experts, EVERYWHERE[name]).values())


@every_method
@pytest.mark.parametrize("factor_A", [0.0, 1.0], ids=["A and B zero", "B zero"])
def test_experts_of_zeros_alone_merge_to_zero(name: str, factor_A: float) -> None:
    experts = {expert: times(factor_A, 0.0, modules) for expert, modules in draw(0).items()}
    assert not any(x.any() for x in merge(experts, EVERYWHERE[name]).values())


@every_method
def test_one_expert_alone_two_repeated_and_many_merge_to_finite_values(name: str) -> None:
    method, experts = dropping(EVERYWHERE[name]), draw(1, "abcdefghijkl", (2,) * 12)
    for chosen in (["a"], ["a", "b"]):
        assert any(x.any() for x in merge({e: experts[e] for e in chosen}, method).values())
    merge({"a": experts["a"], "b": experts["a"], "c": experts["a"]}, method)
    if name != "tsv_m":  # gives each expert a share of the dimensions
        assert any(x.any() for x in merge(experts, method).values())


@pytest.mark.parametrize("space", ["factors", "delta", "knots"])  # core counts the directions that no expert adds
@pytest.mark.parametrize("name", ["ties", "average"])
def test_equal_experts_are_merged_as_one_of_them_alone_is(name: str, space: str) -> None:
    method, alone = read_method(name, space=space), draw(2)["a"]
    assert_same(merge(dict.fromkeys("abc", alone), method), merge({"a": alone}, method))


@every_method
def test_different_ranks_merge_where_the_space_allows_it_and_are_refused_elsewhere(name: str) -> None:
    experts, method = draw(3, "abc", (2, 5, 3)), EVERYWHERE[name]
    if isinstance(method, Method) and method.needs_equal_ranks:
        with pytest.raises(UserError, match="module 'layers.1.v' of the experts 'a' and 'c' has ranks 2 and 3"):
            merge(experts, method)
    else:
        assert all(x.any() for x in merge(experts, method).values())


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, order=st.permutations("abcd"))
def test_the_order_of_experts_and_modules_does_not_change_a_byte(seed: int, order: list[str]) -> None:
    experts = draw(seed, "abcd", (3,) * 4)
    other = {name: dict(reversed(experts[name].items())) for name in order}
    for name, method in METHODS.items():
        there, back = (merge(given, dropping(method)) for given in (experts, other))
        assert all(torch.equal(there[m], back[m]) for m in MODULES), name


# --- scale -------------------------------------------------------------------------------------------------------


@settings(max_examples=4, deadline=None)
@given(seed=SEEDS, power=st.integers(-3, 6))
@pytest.mark.parametrize("name", [name for name in EVERYWHERE if not name.startswith("pcb")])
def test_larger_experts_merge_to_what_is_as_much_larger(name: str, seed: int, power: int) -> None:
    """PCB is left out: its tanh makes the scores of large updates equal."""
    experts, c = draw(seed), 2.0**power
    larger = {name: times(c, c, modules) for name, modules in experts.items()}
    method = dropping(EVERYWHERE[name])
    assert_same(merge(larger, method), merge(experts, method), times=c * c)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, power=st.integers(-10, 10), density=st.floats(0.05, 1))
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_the_threshold_of_an_expert_grows_with_it_and_no_other_does(
    scope: str, seed: int, power: int, density: float
) -> None:
    method = read_method("ties", space="delta", prune__density=density, prune__scope=scope)
    before, after = (limits(draw(seed, grid=True), method, factor) for factor in (1.0, 2.0**power))
    assert after == (before[0], before[1] * 2.0**power, before[2])
    if scope == "model":
        everything = torch.cat([draw(seed, grid=True)["a"][m].delta().flatten() for m in MODULES]).abs()
        n = len(everything)
        assert before[0] == everything.sort().values[max(n - int(n * density), 1) - 1]


def limits(experts: Experts, method: Method, factor: float) -> tuple[float, ...]:
    """The lower limits of TIES, the second expert multiplied by the factor."""
    experts["b"] = times(1.0, factor, experts["b"])

    def visit(add: Callable[[Piece], None]) -> None:
        for module in MODULES if method.prune.scope == "model" else MODULES[:1]:
            for part, blocks in SPACES[method.space](
                [pairs[module] for pairs in experts.values()], method
            ).parts.items():
                add(Piece(module, part, blocks, weights=[1.0] * 3))

    return tuple(limit.low for limit in measure(method, list(experts), visit).limits)


# --- what is refused ---------------------------------------------------------------------------------------------


@every_method
def test_updates_too_large_for_float32_never_become_nan(name: str) -> None:
    method = EVERYWHERE[name]
    experts = {expert: times(1e19, 1e19, modules) for expert, modules in draw(4).items()}
    try:
        updates = merge_models(experts, method)
    except UserError as refused:
        assert "too large for float32" in str(refused)  # noqa: PT017  one of the two must hold
    else:
        pairs = [u for u in updates.values() if isinstance(u, LoraPair)]
        assert all(torch.isfinite(part).all() for pair in pairs for part in (pair.A, pair.B))


def test_experts_that_do_not_fit_together_are_all_named() -> None:
    experts = draw(5, "abcd", (3,) * 4)
    del experts["b"]["layers.1.v"]
    experts["c"]["layers.0.q"] = LoraPair(torch.zeros(3, 24), torch.zeros(21, 3))
    with pytest.raises(UserError) as refused:
        merge_models(experts, read_method("ties", targets="strict"))
    assert str(refused.value).splitlines() == [
        "only one of the experts 'a' and 'b' has module 'layers.1.v'",
        "module 'layers.0.q' of the experts 'a' and 'c' has shapes 20 x 24 and 21 x 24",
    ]
