"""What the laws of methods share: every method wherever it can be, drawn experts, dense merged updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import AnyMethod, FunctionMethod, Method, list_methods, read_method
from robustmerge.spaces import SPACES
from robustmerge.stage.settings import ConfigError

Experts = dict[str, dict[str, LoraPair]]
MODULES = ("layers.0.q", "layers.1.v")
SHAPES = {"layers.0.q": (20, 24), "layers.1.v": (28, 18)}  # d_out, d_in
SEEDS = st.integers(0, 2**31)
METHODS = {name: read_method(name) for name in list_methods()}


def everywhere() -> dict[str, AnyMethod]:
    """Every method as its file has it, and in every other space and scope that it can be in."""
    found = dict(METHODS)
    for name, method in METHODS.items():
        if isinstance(method, FunctionMethod) or method.is_linear:
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


def dropping(method: AnyMethod) -> AnyMethod:
    """The method, leaving out the rank rows that pruning may empty in tensors as small as these."""
    if isinstance(method, FunctionMethod):
        return method
    return replace(method, scale=replace(method.scale, empty_row="drop"))


def dense(update: LoraPair | Tensor) -> Tensor:
    return update.delta() if isinstance(update, LoraPair) else update


def merge(experts: Experts, method: AnyMethod) -> dict[str, Tensor]:
    """The dense merged updates, which are seen to be finite."""
    found = {m: dense(update) for m, update in merge_models(experts, method).items()}
    assert all(torch.isfinite(x).all() for x in found.values())
    return found


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], times: float = 1.0) -> None:
    for module, x in expected.items():
        torch.testing.assert_close(found[module], times * x, rtol=1e-4, atol=1e-4 * float((times * x).abs().max()))
