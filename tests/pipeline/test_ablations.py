"""The paper's ablations are overrides of `merge=robustmerge`; each is what it says.

Tables 6 and 7 and figure 5b of https://arxiv.org/abs/2502.17159. Without normalisation B is multiplied by the sum of
the scales, and what is not scaled is not divided by their sum either, so those rows need a strength of their own.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from pipeline.program import compose
from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method, build_method, read_method
from tests.merge_cases import keep_largest

TABLE_6 = {
    "none": ["merge.prune.rule=none", "merge.prune.density=1", "merge.scale.B=null", "merge.strength=0.55"],
    "prune_and_scale": [
        "merge.scale.normalize=false",
        "merge.strength=0.45",
    ],  # 2 / sqrt(sum of scales): about 20 for 8 experts
    "prune_scale_norm": [],
}
TABLE_7 = {
    "none": ["merge.scale.B=null", "merge.strength=1"],  # 2 / sqrt(N): B averaged, as equal scales normalise to
    "individual_a": ["merge.scale.A=A", "merge.scale.B=null"],
    "individual_b": ["merge.scale.B=B"],
    "individual_a_b": ["merge.scale.A=A", "merge.scale.B=B"],
    "inter_parameter": [],
}
FIGURE_5B = {
    "random": ["merge.prune.rule=random"],
    "sign": ["merge.prune.rule=sign", "merge.prune.density=1"],
    "magnitude": ["merge.prune.rule=magnitude"],
}
ROWS = {
    f"{name}-{row}": overrides
    for name, table in {"table_6": TABLE_6, "table_7": TABLE_7, "figure_5b": FIGURE_5B}.items()
    for row, overrides in table.items()
}
N, RANK = 4, 6


def draw_experts() -> dict[str, LoraPair]:
    draw = torch.Generator().manual_seed(3)
    return {
        name: LoraPair(torch.randn(RANK, 40, generator=draw), torch.randn(30, RANK, generator=draw)) for name in "abcd"
    }


EXPERTS = draw_experts()


def composed(overrides: list[str]) -> Method:
    return compose_once(*overrides)


@cache
def compose_once(*overrides: str) -> Method:
    return build_method(compose("merge", ["merge=robustmerge", *overrides])["merge"])


def as_in_the_paper(overrides: list[str]) -> LoraPair:
    """What the overrides merge to without the floor that only the released code has."""
    return merge_pairs(EXPERTS, composed([*overrides, "merge.scale.floor=0"]))


def pruned(part: str) -> list[Tensor]:
    """Equation 2 for each expert."""
    return [keep_largest(getattr(pair, part), 0.2) for pair in EXPERTS.values()]


def scales(part: str, normalize: bool = True) -> list[Tensor]:
    """Equation 3 for each expert [r], and 4."""
    axis = {"A": 1, "B": 0}[part]
    full = [getattr(pair, part) for pair in EXPERTS.values()]
    S = [x.abs().sum(axis) / kept.abs().sum(axis) for x, kept in zip(full, pruned(part), strict=True)]
    return [s / sum(S) for s in S] if normalize else S


def assert_equal(found: LoraPair, A: Tensor, B: Tensor) -> None:
    torch.testing.assert_close(found.A, A)
    torch.testing.assert_close(found.B, B)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_composes_and_merges_to_finite_values(row: str) -> None:
    method = composed(ROWS[row])
    assert method.name == "robustmerge"
    merged = merge_pairs(EXPERTS, method)
    assert torch.isfinite(merged.delta()).all()
    assert merged.delta().any()


def test_the_rows_are_different_methods_and_the_full_one_is_robustmerge() -> None:
    for table in (TABLE_6, TABLE_7, FIGURE_5B):
        methods = [composed(overrides) for overrides in table.values()]
        assert all(method not in methods[:i] for i, method in enumerate(methods))
        assert read_method("robustmerge") in methods


def test_table_6_without_any_component_is_task_arithmetic() -> None:
    found, other = (merge_pairs(EXPERTS, m) for m in (composed(TABLE_6["none"]), read_method("task_arithmetic")))
    assert torch.equal(found.A, other.A)
    assert torch.equal(found.B, other.B)


def test_table_6_prune_and_scale_leaves_the_scales_as_they_are() -> None:
    B = sum(b * s for b, s in zip(pruned("B"), scales("A", normalize=False), strict=True))
    assert_equal(as_in_the_paper(TABLE_6["prune_and_scale"]), 0.45 * sum(pruned("A")), 0.45 * B)
    assert sum(scales("A", normalize=False)).min() > N  # by so much at least B is larger than normalised


def test_table_7_none_prunes_and_averages_b() -> None:
    found = as_in_the_paper(TABLE_7["none"]).delta()
    torch.testing.assert_close(found, 4 * (sum(pruned("B")) / N) @ sum(pruned("A")))


@pytest.mark.parametrize(
    ("row", "A_by", "B_by"),
    [("individual_a", "A", None), ("individual_b", None, "B"), ("individual_a_b", "A", "B"),
     ("inter_parameter", None, "A")],
)  # fmt: skip
def test_table_7_says_whose_statistic_scales_which_part(row: str, A_by: str | None, B_by: str | None) -> None:
    ones = [torch.ones(RANK)] * N
    A = sum(s[:, None] * a for a, s in zip(pruned("A"), scales(A_by) if A_by else ones, strict=True))
    B = sum(b * s for b, s in zip(pruned("B"), scales(B_by) if B_by else ones, strict=True))
    assert_equal(as_in_the_paper(TABLE_7[row]), 2 * A, 2 * B)


def test_figure_5b_random_keeps_a_fifth_of_the_entries_wherever_they_are() -> None:
    method = composed([*FIGURE_5B["random"], "merge.scale.B=null", "merge.strength=1"])
    for name, pair in EXPERTS.items():
        found = merge_pairs({name: pair}, method)
        for x, full in ((found.A, pair.A), (found.B, pair.B)):
            assert torch.equal(x, full * (x != 0))
            assert 0.1 < (x != 0).float().mean() < 0.3


def test_figure_5b_sign_keeps_what_agrees_with_the_sum_over_experts() -> None:
    found = merge_pairs(EXPERTS, composed([*FIGURE_5B["sign"], "merge.scale.B=null", "merge.strength=1"]))
    for part in "AB":
        xs = [getattr(pair, part) for pair in EXPERTS.values()]
        expected = sum(torch.where(x.sign() == sum(xs).sign(), x, 0.0) for x in xs)
        torch.testing.assert_close(getattr(found, part), expected)


def test_a_sweep_over_the_grid_of_scales_has_all_rows_of_table_7() -> None:
    cells = {(method.scale.A, method.scale.B) for method in map(composed, TABLE_7.values())}
    assert cells == {(None, None), ("A", None), (None, "B"), ("A", "B"), (None, "A")}
