"""Laws of rules and spaces that no published method shows by itself."""

from __future__ import annotations

import pytest
import torch

from robustmerge.algebra import merge_models, merge_pairs
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method
from robustmerge.method_parts import Basis, Prune, Scale
from robustmerge.rules import average_by_energy, energy_of, keep_agreeing, keep_probability, rank_scales
from robustmerge.spaces import SPACES
from tests.merge_cases import method_of, random_experts


@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_what_agrees_with_the_sum_is_kept_whatever_its_size_and_nothing_where_the_sum_is_zero(size: float) -> None:
    one, other = torch.tensor([3.0, -3.0, 2.0, 0.0]) * size, torch.tensor([-1.0, -1.0, -2.0, 1.0]) * size
    kept = keep_agreeing([one, other], Prune("sign"), None, ())
    assert kept[0].div(size).tolist() == [3.0, -3.0, 0.0, 0.0]
    torch.testing.assert_close(kept[1] / size, torch.tensor([0.0, -1.0, 0.0, 1.0]))


def test_a_second_random_pruning_draws_anew() -> None:
    half, ones = Prune("random", 0.5), LoraPair(torch.ones(1, 4000), torch.ones(1, 1))
    method = Method("twice", "knots", 1.0, first=half, prune=half)
    kept = merge_pairs({"a": ones}, method).delta()
    assert 0.2 < float((kept != 0).float().mean()) < 0.3  # a quarter, not the same half twice


def test_rescaling_divides_what_is_kept_and_leaves_the_scales_as_they_are() -> None:
    experts = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    scale = Scale(A="A", B="A", empty_row="drop")
    plain, rescaled = (
        merge_pairs(experts, Method("m", strength=1.0, prune=Prune("magnitude", 0.5, rescale=rescale), scale=scale))
        for rescale in (False, True)
    )
    torch.testing.assert_close(rescaled.delta(), plain.delta() / 0.5**2)


@pytest.mark.parametrize(("scope", "ratios"), [("tensor", [1.0, 1.0]), ("model", [1.0])])
def test_rescaling_by_l1_restores_the_sum_of_magnitudes_over_the_scope(scope: str, ratios: list[float]) -> None:
    expert = random_experts()["a"]
    method = Method("m", "delta", 1.0, prune=Prune("random", 0.5, scope=scope, rescale="l1", epsilon=0.4))
    merged = merge_models({"a": expert}, method)
    sums = torch.tensor([[x.abs().sum() for x in (merged[m], pair.delta())] for m, pair in expert.items()])
    sums = sums if scope == "tensor" else sums.sum(0, keepdim=True)
    torch.testing.assert_close(sums[:, 0] / sums[:, 1], torch.tensor(ratios))


def test_the_larger_of_a_row_are_kept_more_often_and_a_row_of_one_as_the_density_says() -> None:
    x = torch.tensor([[-3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])  # of equal values the first has the smallest chance
    found = keep_probability(x, Prune("random", 0.5, epsilon=0.25))
    assert found.tolist() == [[0.75, 0.25, 0.5], [0.25, 0.5, 0.75]]
    assert keep_probability(x[:, :1], Prune("random", 0.5, epsilon=0.25)) == 0.5


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_where_the_experts_do_not_differ_variance_keeps_all(scope: str) -> None:
    alone, method = random_experts()["a"], method_of("sce", space="delta", prune__scope=scope)
    for name, update in merge_models({"a": alone, "b": alone, "c": alone}, method).items():
        torch.testing.assert_close(update, alone[name].delta())


def test_an_agreeing_expert_has_its_energy_as_weight_however_small_all_are() -> None:
    xs = [torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])]
    for size in (1.0, 1e-12):
        energies = [energy_of(x * size) for x in xs]  # 10, 1, 5 times size squared
        merged, _ = average_by_energy([x * size for x in xs], energies)
        torch.testing.assert_close(merged / size, torch.tensor([31 / 11, 2.0]))


def test_the_floor_is_a_quantile_of_the_scales_that_are_there() -> None:
    before, after = torch.ones(2, 5), 1 / torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 1.0, 3.0, 0.0, 0.0]])
    after[1, 3:] = 0  # an emptied row, and an index that an expert of a smaller rank does not have
    assert rank_scales(before, after, Scale(B="A", floor=0.5)).tolist() == [[3, 3, 3, 4, 5], [5, 3, 3, 0, 0]]


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_a_merge_leaves_the_experts_as_they_were(density: float, scope: str) -> None:
    method = method_of("robustmerge", prune__density=density, prune__scope=scope, scale__A="B")
    given, untouched = random_experts(), random_experts()
    merge_models(given, method)
    for name, modules in given.items():
        for module, pair in modules.items():
            assert torch.equal(pair.A, untouched[name][module].A)
            assert torch.equal(pair.B, untouched[name][module].B)


def test_directions_that_no_expert_uses_have_no_vote_in_core_space() -> None:
    pair = random_experts()["a"]["layers.0.q"]  # of rank 4: of 7 and 8 directions of two, only 4 are there
    (block,) = SPACES["core"]([pair, pair], Method("core", "core", 1.0)).parts["M"]
    for coordinates in block():
        assert coordinates.shape == (7, 8)
        assert coordinates[:4, :4].any()
        assert not coordinates[4:].any()
        assert not coordinates[:, 4:].any()


@pytest.mark.parametrize(("basis", "counts"), [((1e-5, True), (2, 2)), ((0.3, True), (1, 1)), ((0.3, False), (2, 1))])
def test_knots_drops_directions_by_their_size_or_in_proportion_to_the_largest(basis: tuple, counts: tuple) -> None:
    method = Method("knots", "knots", 1.0, basis=Basis(*basis))
    B = torch.tensor([[2.0, 0.0], [0.0, 0.5]])  # singular values 2 and 0.5
    for size, count in zip((1.0, 0.1), counts, strict=True):
        (block,) = SPACES["knots"]([LoraPair(torch.eye(2, 3), size * B)], method).parts["P"]
        assert [len(coordinates) for coordinates in block()] == [count]
