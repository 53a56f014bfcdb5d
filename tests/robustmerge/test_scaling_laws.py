"""The laws of scaling, strength and weights, one module at a time."""

from __future__ import annotations

import pytest
import torch

from robustmerge.algebra import merge_pairs
from robustmerge.method import Method
from robustmerge.method_parts import Prune, Scale
from tests.merge_cases import keep_largest, method_of, random_experts


def scaled(A: str | None, B: str | None, normalize: bool, **more: object) -> Method:
    scale = Scale(A, B, normalize=normalize, **more)
    return Method(name="m", strength=1.0, prune=Prune("magnitude", 0.6), scale=scale)


def test_scale_a_by_a_equals_b_by_a_for_one_expert() -> None:
    pair = {"a": random_experts()["a"]["layers.0.q"]}
    a_by_a, b_by_a = (merge_pairs(pair, scaled(*cell, False)).delta() for cell in (("A", None), (None, "A")))
    torch.testing.assert_close(a_by_a, b_by_a)
    assert not torch.allclose(a_by_a, merge_pairs(pair, scaled(None, "B", False)).delta())


def test_normalisation_cancels_scale_for_one_expert() -> None:
    pair = {"a": random_experts()["a"]["layers.0.q"]}
    plain = merge_pairs(pair, scaled(None, None, False)).delta()
    for cell in (("A", None), (None, "A"), ("B", "B"), ("A", "B")):
        torch.testing.assert_close(merge_pairs(pair, scaled(*cell, True)).delta(), plain)


def test_normalised_equal_experts_average_b() -> None:
    pair = random_experts()["a"]["layers.0.q"]
    one = merge_pairs({"a": pair}, scaled(None, "A", True))
    three = merge_pairs(dict.fromkeys("abc", pair), scaled(None, "A", True))
    torch.testing.assert_close(three.B, one.B)
    torch.testing.assert_close(three.A, 3 * one.A)


def test_product_each_is_equation_five() -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    method = method_of("robustmerge", product="each", prune__density=0.6, scale__floor=0.0)
    masked = {name: [keep_largest(x, 0.6) for x in (p.A, p.B)] for name, p in pairs.items()}
    S = {name: pairs[name].A.abs().sum(1) / masked[name][0].abs().sum(1) for name in pairs}
    total = sum(S.values())
    expected = 2 * sum(B @ torch.diag(S[name] / total) @ A for name, (A, B) in masked.items())
    merged = merge_pairs(pairs, method)
    torch.testing.assert_close(merged.delta(), expected)
    assert merged.rank == 12


def test_strength_multiplies_the_update_as_the_summary_says() -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    for kind in ({"space": "factors"}, {"product": "each"}, {"space": "delta"}):
        one, other = method_of("task_arithmetic", strength=1.0, **kind), method_of("task_arithmetic", **kind)
        expected = other.effective_strength * merge_pairs(pairs, one).delta()
        torch.testing.assert_close(merge_pairs(pairs, other).delta(), expected)
        assert other.effective_strength == pytest.approx(0.3, abs=0.01)


def test_a_weight_multiplies_the_update_of_its_expert_once() -> None:
    pairs = {"a": random_experts()["a"]["layers.0.q"]}
    for kind in ({"space": "factors"}, {"product": "each"}, {"space": "delta"}):
        merged = merge_pairs(pairs, method_of("task_arithmetic", strength=1.0, weights={"a": -3.0}, **kind))
        torch.testing.assert_close(merged.delta(), -3 * pairs["a"].delta())
