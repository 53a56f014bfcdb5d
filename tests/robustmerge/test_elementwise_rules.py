"""TIES, PCB, Breadcrumbs and SCE, streamed and in blocks, against their definition on vectors that are sorted whole.

In every space, with a tensor or the whole model as range, with weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustmerge import spaces
from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair
from robustmerge.formats.delta import WEIGHTS
from robustmerge.formats.tensors import TensorFile
from robustmerge.merging import write_merged
from robustmerge.method import Method, read_method
from robustmerge.pcb import CLAMP
from robustmerge.rules import generator_for
from robustmerge.spaces import SPACES
from tests.merge_cases import QUIET, write_expert

MODULES = {"layers.0.q": (6, 8), "layers.1.q": (5, 9)}  # d_out, d_in
Experts = dict[str, dict[str, LoraPair]]


def draw(seed: int, levels: int, bias: int = 0) -> Experts:
    """Three experts of rank 2. levels: on a grid of so many steps to each side, so that products are exact and there
    are equal values and zeros; 0: on none. bias: by how many steps the grid reaches further below zero.
    """
    source = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        if not levels:
            return torch.randn(shape, generator=source) / 4  # so that tanh makes no scores equal
        return torch.randint(-levels - bias, levels + 1, shape, generator=source) / 8

    return {
        name: {m: LoraPair(values(2, d_in), values(d_out, 2).abs()) for m, (d_out, d_in) in MODULES.items()}
        for name in "abc"
    }


def ties(X: Tensor, method: Method) -> Tensor:
    """TIES as its authors define it. X [T, n] -> [n]."""
    n = X.shape[1]
    k = max(n - int(n * method.prune.density), 1)
    kept = torch.where(X.abs() >= X.abs().sort(1).values[:, k - 1 : k], X, 0.0) * weights_of(method)
    sign = kept.sum(0).sign()
    sign = torch.where(sign == 0, 1.0 if sign.sum() > 0 else -1.0, sign)
    agreeing = torch.where(kept.sign() == sign, kept, 0.0)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def pcb(X: Tensor, method: Method) -> Tensor:
    """PCB as its authors define it, an expert of zeros scoring 0. X [T, n] -> [n]."""
    X = X * weights_of(method)
    (T, n), c = X.shape, CLAMP[method.balance.variant]
    ordered = X.abs().sort(1).values
    low, high = ordered[:, int(n * c)][:, None], ordered[:, int(n * (1 - c) - 1)][:, None]
    size = minmax(X.abs(), low, high)
    others = (X.sign() * size if method.balance.variant == "vision" else X).sum(0)
    beta = (T * size**2).exp() * (X * others).tanh()
    limit = beta.sort(1).values[:, min(int(n * (1 - method.balance.density)), n - 1)][:, None]
    score = minmax(beta, limit, beta.amax(1, keepdim=True))
    return (score * X.sign() * X.abs().clamp(low, high)).sum(0) / score.sum(0).clamp(min=1e-12)


def breadcrumbs(X: Tensor, method: Method) -> Tensor:
    """Breadcrumbs as mergekit defines it, but that nothing is skipped where mergekit drops all. X [T, n] -> [n]."""
    n = X.shape[1]
    number = int(n * method.prune.density)
    end = n - min(int(n * method.prune.skip), n - number)
    ordered = X.abs().sort(1).values
    low, high = ordered[:, end - number][:, None], ordered[:, end - 1][:, None]
    kept = torch.where((X.abs() >= low) & (X.abs() <= high), X, 0.0)
    gain = X.abs().sum(1) / kept.abs().sum(1) if method.prune.rescale == "l1" else torch.ones(len(X))
    return (kept * gain.nan_to_num(1.0, posinf=1.0)[:, None] * weights_of(method)).sum(0)


def sce(X: Tensor, method: Method) -> Tensor:
    """SCE as mergekit defines it, but for its floors. X [T, n] -> [n]."""
    spread = X.double().var(0, unbiased=False)
    number = max(int(int((spread > 0).sum()) * method.prune.density), 1)
    kept = X * (spread >= spread.sort(descending=True).values[number - 1]) * weights_of(method)
    agreeing = torch.where(kept.sign() == kept.sum(0).sign(), kept, 0.0)
    shares = kept.square().sum(1, keepdim=True) * (agreeing != 0)
    return ((shares * agreeing).sum(0) / shares.sum(0)).nan_to_num(0.0)


RULES = {"ties": ties, "pcb": pcb, "breadcrumbs": breadcrumbs, "sce": sce}


def minmax(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.where(high > low, (x.clamp(low, high) - low) / (high - low), ((x >= high) & (x > 0)).float())


def weights_of(method: Method) -> Tensor:
    return torch.tensor([(method.weights or {}).get(name, 1.0) for name in "abc"])[:, None]


def expected(experts: Experts, method: Method) -> dict[str, Tensor]:
    """The dense merged updates, made of vectors: one for the whole model, or one for each part of each module."""
    rule = RULES[method.name]
    coded = {m: SPACES[method.space]([expert[m] for expert in experts.values()], method) for m in MODULES}
    stacks = {(m, part): blocks[0]() for m in MODULES for part, blocks in coded[m].parts.items()}
    flat = {key: torch.stack([x.flatten() for x in xs]) for key, xs in stacks.items()}
    if method.prune.scope == "model":
        sizes = [x.shape[1] for x in flat.values()]
        merged = dict(zip(flat, rule(torch.cat(list(flat.values()), 1), method).split(sizes), strict=True))
    else:
        merged = {key: rule(x, method) for key, x in flat.items()}
    found = {}
    for m in MODULES:
        parts = {p: merged[m, p].view_as(stacks[m, p][0]) * method.strength for p in coded[m].parts}
        update = coded[m].decode(parts)
        found[m] = update.delta() if isinstance(update, LoraPair) else update
    return found


def method_of(name: str, space: str, scope: str, density: float) -> Method:
    changes: dict[str, Any] = {"prune__density": density}
    if name.startswith("pcb"):
        changes = {"balance__density": density, "balance__variant": name.removeprefix("pcb_")}
    if name.startswith("breadcrumbs"):
        changes |= {"prune__skip": 0.15, "prune__rescale": "l1" if name.endswith("l1") else False}
    weights = {"a": -0.5, "c": 2.0} if space != "factors" else None
    return read_method(name.partition("_")[0], space=space, prune__scope=scope, weights=weights, **changes)


def assert_merged(experts: Experts, method: Method, reference: dict[str, Tensor]) -> None:
    merged = merge_models(experts, method)
    for m, x in reference.items():
        found = merged[m].delta() if isinstance(merged[m], LoraPair) else merged[m]
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-5 * float(x.abs().max()) + 1e-12)


every_range = pytest.mark.parametrize("scope", ["tensor", "model"])
every_rule = pytest.mark.parametrize("name", ["ties", "pcb_main", "pcb_vision", "breadcrumbs", "breadcrumbs_l1", "sce"])


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    levels=st.sampled_from([1, 2, 40]),
    bias=st.integers(0, 2),
    density=st.sampled_from([0.1, 0.3, 0.8, 1.0]),
    zero=st.booleans(),
)
@pytest.mark.parametrize("space", SPACES)
@every_range
@every_rule
def test_a_rule_is_its_definition_on_whole_vectors(
    name: str, space: str, scope: str, seed: int, levels: int, bias: int, density: float, zero: bool
) -> None:
    # Elsewhere, and in a variance, rounding decides between equal values.
    exact = name in ("ties", "breadcrumbs", "breadcrumbs_l1") and space in ("factors", "delta")
    experts = draw(seed, levels if exact else 0, bias)
    if zero:
        experts["b"] = {m: LoraPair(pair.A * 0, pair.B * 0) for m, pair in experts["b"].items()}
    method = method_of(name, space, scope, density)
    assert_merged(experts, method, expected(experts, method))


@every_range
@every_rule
def test_a_rule_is_its_definition_where_numbers_are_counted_and_come_in_blocks(
    name: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, method = draw(7, 0), method_of(name, "delta", scope, 0.3)
    reference = expected(experts, method)
    monkeypatch.setattr("robustmerge.order_statistics.BATCH", 20)
    monkeypatch.setattr(spaces, "BLOCK", 20)
    assert_merged(experts, method, reference)


@every_range
@every_rule
def test_in_factor_space_a_weight_is_on_b_alone(name: str, scope: str) -> None:
    """So that it is on the update once."""
    experts = draw(8, 0)
    weighted = replace(method_of(name, "factors", scope, 1.0), weights={"a": 3.0})
    heavier = {**experts, "a": {m: LoraPair(pair.A, 3 * pair.B) for m, pair in experts["a"].items()}}
    found, other = merge_models(experts, weighted), merge_models(heavier, replace(weighted, weights=None))
    for m in MODULES:
        torch.testing.assert_close(found[m].A, other[m].A)
        torch.testing.assert_close(found[m].B, other[m].B)


def test_scores_of_a_hundred_experts_do_not_overflow() -> None:
    """exp(N) is infinite in float32 from N = 89 on."""
    experts = {f"expert{n}": draw(n, 0)["a"] for n in range(100)}
    for update in merge_models(experts, read_method("pcb")).values():
        assert update.A.any()
        assert update.B.any()


def test_where_the_sum_is_zero_the_majority_of_the_whole_model_decides(tmp_path: Path) -> None:
    """In memory, and from folders, module by module: three entries, whose sums are 0, 0 and negative."""
    one, half = torch.ones(1, 1), torch.full((1, 1), 0.5)
    experts = {
        "a": {"0.q": LoraPair(one, one), "1.q": LoraPair(-one, -half), "2.q": LoraPair(one, -one)},
        "b": {"0.q": LoraPair(-one, one), "1.q": LoraPair(one, -half), "2.q": LoraPair(one, -one)},
    }
    folders = {name: write_expert(tmp_path / name, modules) for name, modules in experts.items()}
    method = read_method("ties", space="delta", prune__density=1.0)
    merged = merge_models(experts, method)
    write_merged(tmp_path / "merged", method, folders, **QUIET)
    written = TensorFile(tmp_path / "merged" / WEIGHTS)
    for module, value in (("0.q", -1.0), ("1.q", -0.5), ("2.q", -1.0)):
        assert float(merged[module]) == float(written.get(f"add.{module}.weight")) == value
    apart = merge_models(experts, replace(method, prune=replace(method.prune, scope="tensor")))
    assert [float(apart[module]) for module in ("0.q", "1.q", "2.q")] == [-1.0, -0.5, -1.0]  # a draw counts as -


def test_trimming_over_the_model_after_random_dropping_is_that_of_what_was_dropped_and_rescaled() -> None:
    """Half-precision values, whose quotients are none: the threshold is measured before they are divided."""
    experts = {
        name: {m: LoraPair(pair.A.half().float(), pair.B.half().float()) for m, pair in pairs.items()}
        for name, pairs in draw(3, 0).items()
    }
    both = read_method("dare_ties", space="factors", prune__scope="model", prune__density=0.4, first__density=0.7)

    def drop(x: Tensor, *where: str) -> Tensor:
        return x * (torch.rand(x.shape, generator=generator_for(both.seed, *where)) < 0.7) / 0.7

    dropped = {
        name: {m: LoraPair(drop(pair.A, name, m, "A"), drop(pair.B, name, m, "B")) for m, pair in pairs.items()}
        for name, pairs in experts.items()
    }
    merged, trimmed = merge_models(experts, both), merge_models(dropped, replace(both, first=None))
    for m in MODULES:
        assert torch.equal(merged[m].delta(), trimmed[m].delta())
