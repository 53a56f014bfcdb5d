"""Laws of every method in `configs/merge`, in memory. `pytest tests/test_method_laws.py`

Whatever the experts are (zero, repeated, two or many, of different ranks), what comes out is finite or refused; sums
agree in every space; merging in blocks changes nothing; thresholds grow with the experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustmerge import spaces
from robustmerge.adapter import LoraPair
from robustmerge.algebra import merge_models, parts_of
from robustmerge.measure import Known, measure
from robustmerge.method import Method, OutsideMethod, Prune
from robustmerge.method_files import list_methods, read_method
from robustmerge.module import Module
from robustmerge.settings import ConfigError, UserError
from robustmerge.spaces import SPACES

Experts = dict[str, dict[str, LoraPair]]
MODULES = ("layers.0.q", "layers.1.v")
SHAPES = {"layers.0.q": (20, 24), "layers.1.v": (28, 18)}  # d_out, d_in
SEEDS = st.integers(0, 2**31)
METHODS = {name: read_method(name) for name in list_methods()}


def everywhere() -> dict[str, Method | OutsideMethod]:
    """Every method as its file has it, and in every other space and scope that it can be in."""
    found = dict(METHODS)
    for name, method in METHODS.items():
        if isinstance(method, OutsideMethod) or method.is_linear:
            continue
        for space in SPACES:
            for scope in ("tensor", "model"):
                try:
                    found[f"{name}-{space}-{scope}"] = read_method(name, space=space, prune__scope=scope)
                except ConfigError:  # scaling is for factors, and needs a strength for them
                    assert name.startswith("robustmerge")
    return found


EVERYWHERE = everywhere()
ELEMENTWISE = [name for name, m in EVERYWHERE.items() if isinstance(m, Method) and m.space == "delta"
               and not m.is_linear]  # fmt: skip
every_method = pytest.mark.parametrize("name", EVERYWHERE)


def draw(seed: int, names: str = "abc", ranks: tuple[int, ...] = (3, 3, 3), grid: bool = False) -> Experts:
    """Random experts; on a grid their updates are exact in float32 and have equal values and zeros."""
    source = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        if grid:
            return torch.randint(-3, 4, shape, generator=source) / 8
        return torch.randn(shape, generator=source)

    return {
        name: {m: LoraPair(values(rank, d_in), values(d_out, rank)) for m, (d_out, d_in) in SHAPES.items()}
        for name, rank in zip(names, ranks, strict=True)
    }


def times(factor_A: float, factor_B: float, expert: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    return {m: LoraPair(pair.A * factor_A, pair.B * factor_B) for m, pair in expert.items()}


def dropping(method: Method | OutsideMethod) -> Method | OutsideMethod:
    """The method, leaving out the rank rows that pruning may empty in tensors as small as these."""
    if isinstance(method, OutsideMethod):
        return method
    return replace(method, scale=replace(method.scale, empty_row="drop"))


def merge(experts: Experts, method: Method | OutsideMethod) -> dict[str, Tensor]:
    """The dense merged updates, which are seen to be finite."""
    updates = merge_models(experts, method)
    found = {m: u.delta() if isinstance(u, LoraPair) else u for m, u in updates.items()}
    assert all(torch.isfinite(x).all() for x in found.values())
    return found


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], times: float = 1.0) -> None:
    for module, x in expected.items():
        torch.testing.assert_close(found[module], times * x, rtol=1e-4, atol=1e-4 * float((times * x).abs().max()))


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


# --- spaces ------------------------------------------------------------------------------------------------------


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
    """The thresholds of TIES, the second expert multiplied by the factor."""
    experts["b"] = times(1.0, factor, experts["b"])
    modules = [Module(m, list(experts), [pairs[m] for pairs in experts.values()], method) for m in MODULES]
    chosen = modules if method.prune.scope == "model" else modules[:1]
    known: Known = measure(method, list(experts), lambda add: [add(*part) for m in chosen for part in parts_of(m)])
    return known.limits


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
        merge_models(experts, METHODS["ties"])
    assert str(refused.value).splitlines() == [
        "only one of the experts 'a' and 'b' has module 'layers.1.v'",
        "module 'layers.0.q' of the experts 'a' and 'c' has shapes 20 x 24 and 21 x 24",
    ]
