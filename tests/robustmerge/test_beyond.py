"""The laws that the methods beyond the paper share, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge import low_rank
from robustmerge.beyond import (
    compress_then_merge,
    ct_merging,
    dc_merge,
    do_merging,
    iso_c,
    iso_cts,
    lora_lego,
    swudi,
    tsv_m,
)
from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import concatenate
from robustmerge.stage.settings import UserError

METHODS = {
    "tsv_m": tsv_m.merge,
    "iso_c": iso_c.merge,
    "iso_cts": iso_cts.merge,
    "swudi": swudi.merge,
    "dc_merge": dc_merge.merge,
    "compress_then_merge": compress_then_merge.merge,
    "ct_merging": ct_merging.merge,
    "lora_lego": lora_lego.merge,
    "do_merging": do_merging.merge,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name: method, settings
    "tsv_m": ("tsv_m", {}),
    "iso_c": ("iso_c", {}),
    "iso_cts": ("iso_cts", {}),
    "iso_cts_half": ("iso_cts", {"common": 0.5}),
    "swudi": ("swudi", {}),
    "swudi_mean": ("swudi", {"init": "mean"}),
    "aswudi": ("swudi", {"variant": "aswudi"}),
    "dc_avg": ("dc_merge", {"density": 0.1}),
    "dc_linear": ("dc_merge", {"density": 0.1, "smoothing": "linear"}),
    "ctm_ties": ("compress_then_merge", {}),
    "ctm_sum": ("compress_then_merge", {"rule": "sum"}),
    "ct": ("ct_merging", {}),
    "ct_cut": ("ct_merging", {"common_rank": 3, "residual_rank": 2}),
    "lego": ("lora_lego", {}),
    "lego_5": ("lora_lego", {"clusters": 5}),
    "do": ("do_merging", {}),
}


def experts_of(ranks: list[int], d_out: int = 40, d_in: int = 50, seed: int = 0) -> list[LoraPair]:
    draw = torch.Generator().manual_seed(seed)
    return [LoraPair(torch.randn(r, d_in, generator=draw), torch.randn(d_out, r, generator=draw)) for r in ranks]


def apply(variant: str, pairs: list[LoraPair], **changes: Any) -> LoraPair:
    name, chosen = VARIANTS[variant]
    return METHODS[name](pairs, **{**chosen, **changes})


def distance(one: LoraPair, other: LoraPair) -> float:
    """|D - D'| / |D|, in Frobenius norm."""
    return float((one.delta() - other.delta()).norm() / one.delta().norm())


def zero_like(pair: LoraPair) -> LoraPair:
    return LoraPair(pair.A, torch.zeros_like(pair.B))


every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
def test_the_order_of_the_experts_does_not_matter(variant: str) -> None:
    pairs = experts_of([4, 4, 4])
    assert distance(apply(variant, pairs), apply(variant, pairs[::-1])) < 1e-5


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("lego")])  # clusters the factors
def test_only_the_product_of_an_experts_factors_matters(variant: str) -> None:
    pairs = experts_of([4, 4, 4])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    other = [LoraPair(100 * turn @ p.A, p.B @ turn.T / 100) for p in pairs]
    assert distance(apply(variant, pairs), apply(variant, other)) < 1e-5


@every_variant
@pytest.mark.parametrize("shared", [False, True], ids=["own A", "one A"])
def test_noise_in_the_last_digit_changes_the_result_no_more_than_that(variant: str, shared: bool) -> None:
    """At N r < min(d), where the published TSV-M and Iso-C turn the same noise into two thirds of the result."""
    pairs = experts_of([4, 4, 4])
    pairs = [LoraPair(pairs[0].A, p.B) for p in pairs] if shared else pairs
    draw = torch.Generator().manual_seed(2)
    noisy = [LoraPair(p.A, p.B * (1 + 1e-7 * torch.randn(p.B.shape, generator=draw))) for p in pairs]
    assert distance(apply(variant, pairs), apply(variant, noisy)) < 1e-4


@every_variant
def test_an_all_zero_expert_is_merged_cleanly(variant: str) -> None:
    pairs = experts_of([4, 4, 4])
    merged = apply(variant, [*pairs, zero_like(pairs[0])])
    assert torch.isfinite(merged.delta()).all() and merged.delta().any()
    if variant not in ("swudi_mean", "do"):  # a mean over four instead of three
        assert distance(merged, apply(variant, pairs)) < 1e-5


@every_variant
def test_experts_that_are_all_zero_merge_to_zero(variant: str) -> None:
    pairs = [zero_like(pair) for pair in experts_of([4, 4])]
    merged = apply(variant, pairs)
    assert merged.rank >= 1 and merged.delta().shape == (40, 50)
    assert not merged.delta().any()


@every_variant
def test_strength_multiplies_the_update(variant: str) -> None:
    pairs = experts_of([4, 4])
    once, thrice = apply(variant, pairs, strength=1.0), apply(variant, pairs, strength=3.0)
    torch.testing.assert_close(thrice.delta(), 3 * once.delta())


@pytest.mark.parametrize("variant", ["tsv_m", "swudi", "aswudi", "ctm_sum", "ct", "lego", "do"])
def test_one_expert_alone_is_given_back(variant: str) -> None:
    (pair,) = experts_of([4])
    assert distance(pair, apply(variant, [pair], strength=1.0)) < 1e-5


@pytest.mark.parametrize("variant", ["tsv_m", "swudi", "aswudi"])
def test_experts_that_share_no_direction_are_added(variant: str) -> None:
    left, right = torch.linalg.qr(torch.randn(40, 8))[0], torch.linalg.qr(torch.randn(50, 8))[0].T
    pairs = [LoraPair(right[:4], left[:, :4] * 3), LoraPair(right[4:], left[:, 4:])]
    assert distance(concatenate(pairs, [1.0, 1.0]), apply(variant, pairs, strength=1.0)) < 1e-5


@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("smoothing", ["avg", "linear"])
@pytest.mark.parametrize("rho", [1.5, 50.0])
def test_dc_merge_is_its_formula_in_dense_matrices(smoothing: str, density: float, rho: float) -> None:
    """With 0.1 and more the blocks matter, which in the authors' cases hold all that is kept."""
    pairs, r = experts_of([4, 4, 4]), 4
    U, s, V = zip(*(torch.linalg.svd(pair.delta().double(), full_matrices=False) for pair in pairs), strict=True)
    covers = []
    for x in (torch.cat([u[:, :r] for u in U], dim=1), torch.cat([v[:r] for v in V]).T):
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        covers.append(left @ right)
    total = torch.zeros(3, 3 * r, 3 * r, dtype=torch.float64)
    for n in range(3):
        top = 1.0 if smoothing == "avg" else min(rho, float(s[n][0] / s[n][r - 1]))
        w = torch.tensor([top + (1 - top) * i / (r - 1) for i in range(r)], dtype=torch.float64)
        energy = s[n][:r].sum() * w / w.sum()
        M = covers[0].T @ (U[n][:, :r] * energy @ V[n][:r]) @ covers[1]
        kept = M.abs().flatten().sort(descending=True).indices[: max(1, int(density * M.numel()))]
        total[n].view(-1)[kept] = M.reshape(-1)[kept]
    M = torch.zeros(3 * r, 3 * r, dtype=torch.float64)
    for i in range(3 * r):
        for j in range(3 * r):
            column = total[:, i, j]
            same = column[column * column.sum() > 0]
            if i // r == j // r and len(same):
                M[i, j] = same.mean()
    found = dc_merge.merge(pairs, smoothing, rho, density, strength=1.0).delta()
    torch.testing.assert_close(found, (covers[0] @ M @ covers[1].T).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ranks", "changes", "said"),
    [
        ({"q": [16] * 8}, {}, None),  # the authors' experts
        (
            {"q": [16] * 8, "v": [16, 16]},
            {},
            "keeps 1 of the 1024 coordinates of an expert with 16 directions in v, and",
        ),
        ({"q": [16] * 4, "v": [16]}, {}, "4 of the 4096 coordinates of an expert with 16 directions in q, and"),
        ({"q": [16] * 4}, {"density": 0.1}, None),
        ({"q": [4]}, {"density": 0.1}, None),  # nothing better to say
        ({"q": [64] * 8}, {"rank": 2}, "1 of the 256 coordinates of an expert with 2 directions"),
    ],
)
def test_dc_merge_warns_where_it_keeps_less_than_one_coordinate_a_direction(
    ranks: dict[str, list[int]], changes: dict[str, Any], said: str | None
) -> None:
    found = dc_merge.find_warnings(ranks, **changes, strength=2.0)
    assert [said in text and text.endswith("merge.params.density=0.1") for text in found] == [True] * bool(said)


@pytest.mark.parametrize("init", ["sum", "mean"])
@pytest.mark.parametrize("variant", ["swudi", "aswudi"])
@pytest.mark.parametrize("seed", [0, 11, 21])
def test_swudi_is_its_formula_in_dense_matrices(variant: str, init: str, seed: int) -> None:
    """With far more dimensions than ranks; seeds 11 and 21 have another K without the eigenvalues that are 0."""
    pairs = [LoraPair(p.A, p.B * 0.3 ** torch.arange(4)) for p in experts_of([4, 4, 4], d_in=300, seed=seed)]
    D = torch.stack([pair.delta().double() for pair in pairs])
    w = 1 / D.square().sum((1, 2))
    C = sum(x * d.T @ d for x, d in zip(w, D, strict=True))
    F = sum(x * d @ d.T @ d for x, d in zip(w, D, strict=True))
    values, V = torch.linalg.eigh(C)
    values, V = values.clamp(min=1e-8).flip(0), V.flip(1)
    if variant == "swudi":
        count, f = 195, 1 - torch.exp(-300 * values)
    else:
        count, f = math.ceil(values.sqrt().sum() ** 2 / values.sum()), torch.ones_like(values)
    f[count:] = 0
    start = D.sum(0) if init == "sum" else D.mean(0)
    expected = start - start @ V * f @ V.T + F @ V * (f / values) @ V.T
    found = swudi.merge(pairs, variant, init).delta()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"common_rank": 2}, {"common_rank": 3, "residual_rank": 2}])
@pytest.mark.parametrize("shared", [False, True], ids=["own A", "one A"])
def test_ct_merging_is_its_formula_in_dense_matrices(settings: dict[str, int], shared: bool) -> None:
    """From eigenvectors of dense projectors; polar(X) as X (X^T X)^(-1/2) on the span. The last expert is zero."""
    k, r = settings.get("common_rank", 4), settings.get("residual_rank", 4)
    pairs = experts_of([4, 4, 4, 4])
    pairs = [LoraPair(pairs[0].A, p.B) for p in pairs] if shared else pairs
    D = [pair.delta().double() for pair in pairs[:3]]
    U, s, V = zip(*((u[:, :r], s[:r], v[:r].T) for u, s, v in map(torch.linalg.svd, D)), strict=True)
    common = torch.linalg.eigh(sum(u @ u.T for u in U)).eigenvectors[:, -k:]
    P, s_c, Q = torch.linalg.svd(sum(common.T @ d for d in D) / 3, full_matrices=False)
    left = torch.cat([common @ P, *(u - common @ common.T @ u for u in U)], dim=1)
    right = torch.cat([Q.T, *V], dim=1)
    gain = torch.cat([x.square().mean().sqrt().expand(len(x)) for x in (s_c, *s)])
    expected = torch.zeros(40, 50, dtype=torch.float64)
    turns = []
    for X in (left, right):
        values, vectors = torch.linalg.eigh(X.T @ X)
        vectors, values = vectors[:, values > 1e-9], values[values > 1e-9]
        turns.append(X @ vectors / values.sqrt() @ vectors.T)
    for n in range(len(gain)):
        expected += gain[n] * torch.outer(turns[0][:, n], turns[1][:, n])
    found = ct_merging.merge([*pairs[:3], zero_like(pairs[3])], **settings).delta()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_ct_merging_cuts_no_directions_that_are_common_to_the_same_degree() -> None:
    """Experts without a common direction: every one is as common as the other, and which four would be arbitrary."""
    left, right = torch.linalg.qr(torch.randn(40, 8))[0], torch.linalg.qr(torch.randn(50, 8))[0].T
    pairs = [LoraPair(right[:4], left[:, :4] * 3), LoraPair(right[4:], left[:, 4:])]
    assert distance(concatenate(pairs, [1.0, 1.0]), ct_merging.merge(pairs)) < 1e-5


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_is_its_formula_in_dense_matrices(common: float) -> None:
    """With more dimensions than the 9 directions of the sum, of which the authors' cases have all."""
    pairs = experts_of([3, 3, 3])
    D = [pair.delta().double() for pair in pairs]
    k = {0.0: 3, 0.5: 2, 0.8: 1, 1.0: 0}[common]  # of 9, 5, 2 and 0 that are shared out
    u, s, v = torch.linalg.svd(sum(D))
    left, values, right = [u[:, : 9 - 3 * k]], [s[: 9 - 3 * k]], [v[: 9 - 3 * k].T]
    for d in D:
        u, s, v = torch.linalg.svd(d - left[0] @ left[0].T @ d)
        left, values, right = [*left, u[:, :k]], [*values, s[:k]], [*right, v[:k].T]
    (p, _, q), (x, _, y) = (torch.linalg.svd(torch.cat(part, 1), full_matrices=False) for part in (left, right))
    expected = torch.cat(values).mean() * p @ q @ (x @ y).T
    found = iso_cts.merge(pairs, common).delta()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    if k == 0:
        assert distance(iso_c.merge(pairs), iso_cts.merge(pairs, common)) < 1e-6


def test_do_merging_is_its_formula_in_dense_matrices() -> None:
    """The second expert lacks a column, the third is zero: they have no direction there, and count in the means."""
    pairs = experts_of([4, 2, 3])
    pairs[1].A[:, 7] = 0
    pairs[2] = zero_like(pairs[2])
    D = torch.stack([pair.delta().double() for pair in pairs])
    length = D.norm(dim=1, keepdim=True)
    direction = torch.where(length > 0, D / length, 0.0)
    expected = length.mean(0) * direction.mean(0)
    torch.testing.assert_close(do_merging.merge(pairs).delta(), expected.float(), rtol=1e-4, atol=1e-5)


def test_lora_lego_finds_the_units_that_lie_together() -> None:
    """Four units, of which every expert has a slightly other version, in another order."""
    (prototype,) = experts_of([4])
    draw = torch.Generator().manual_seed(1)
    pairs, places = [], []
    for _ in range(5):
        order = torch.randperm(4, generator=draw)
        A, B = (x + 1e-3 * torch.randn(x.shape, generator=draw) for x in (prototype.A, prototype.B))
        pairs.append(LoraPair(A[order], B[:, order]))
        places.append((A, B))
    merged = lora_lego.merge(pairs)
    mean = LoraPair(*(torch.stack(x).mean(0) for x in zip(*places, strict=True)))
    assert merged.rank == 4 and distance(concatenate([mean], [5**0.5]), merged) < 2e-3
    torch.testing.assert_close(merged.delta(), lora_lego.merge(pairs, seed=1).delta())


def test_iso_c_makes_the_singular_values_equal_and_keeps_their_sum() -> None:
    pairs = experts_of([4, 2, 3])
    values = torch.linalg.svdvals(iso_c.merge(pairs).delta())
    before = torch.linalg.svdvals(sum(pair.delta() for pair in pairs))
    torch.testing.assert_close(values[:9], (before.sum() / 9).expand(9))
    assert values[9] < 1e-4 * values[0]


def test_compress_then_merge_has_the_rank_of_the_largest_expert_or_the_one_asked_for() -> None:
    assert apply("ctm_ties", experts_of([2, 4, 3])).rank == 4
    assert apply("ctm_ties", experts_of([2, 4, 3]), rank=2).rank == 2


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    shape=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    scales=st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e6]), min_size=4, max_size=4),
    copies=st.booleans(),
)
def test_every_result_is_finite_and_of_bounded_rank(
    variant: str, ranks: list[int], shape: tuple[int, int], scales: list[float], copies: bool
) -> None:
    """Different ranks, ranks above the dimensions, zero, weak and strong experts, the same expert twice."""
    pairs = [LoraPair(p.A, p.B * s) for p, s in zip(experts_of(ranks, *shape), scales, strict=False)]
    pairs = [*pairs, pairs[0]] if copies and len(pairs) < 4 else pairs
    merged = apply(variant, pairs)
    assert merged.A.dtype == merged.B.dtype == torch.float32
    assert torch.isfinite(merged.A).all() and torch.isfinite(merged.B).all()
    assert 1 <= merged.rank <= sum(pair.rank for pair in pairs)
    assert merged.delta().shape == shape


def test_polar_is_the_nearest_orthonormal_matrix_and_a_partial_isometry_where_there_is_none() -> None:
    x = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(low_rank.polar(x).T @ low_rank.polar(x), torch.eye(4, dtype=torch.float64))
    twice = low_rank.polar(torch.cat([x, x], dim=1))
    torch.testing.assert_close(twice, torch.cat([low_rank.polar(x)] * 2, dim=1) / 2**0.5)


def test_settings_that_mean_nothing_are_refused_with_the_choices() -> None:
    pairs = experts_of([2, 2])
    with pytest.raises(UserError, match=r"unknown variant .*'swud'; choose one of aswudi, swudi \(did you mean"):
        swudi.merge(pairs, variant="swud")
    with pytest.raises(UserError, match="unknown init .*'zero'; choose one of mean, sum"):
        swudi.merge(pairs, init="zero")
    with pytest.raises(UserError, match="unknown smoothing .*'average'; choose one of avg, linear"):
        dc_merge.merge(pairs, smoothing="average")
    with pytest.raises(UserError, match=r"density must be in \(0, 1\], got 10"):
        dc_merge.merge(pairs, density=10)
    with pytest.raises(UserError, match="rho must be at least 1, got 0.5 .*\nrank must be at least 1, got -1"):
        dc_merge.merge(pairs, rho=0.5, rank=-1)
    with pytest.raises(UserError, match=r"share must be in \[0, 1\], got 65 .*\ntime must be at least 0, got -1"):
        swudi.merge(pairs, share=65, time=-1)
    with pytest.raises(UserError, match=r"common must be in \[0, 1\], got 80 \(merge.params.common\)"):
        iso_cts.merge(pairs, common=80)
    with pytest.raises(UserError, match=r"clusters must be at least 1, got 0 \(merge.params.clusters\)"):
        lora_lego.merge(pairs, clusters=0)
    with pytest.raises(
        UserError, match="common_rank must be at least 0, got -1 .*\nresidual_rank must be at least 1, got 0"
    ):
        ct_merging.merge(pairs, common_rank=-1, residual_rank=0)
    with pytest.raises(UserError, match="unknown rule .*'dare'; choose one of sum, ties"):
        compress_then_merge.merge(pairs, rule="dare")
    with pytest.raises(UserError) as refused:
        compress_then_merge.merge(pairs, density=0.0, beta=2.0, rank=0)
    assert [line.rpartition(" (")[2] for line in str(refused.value).splitlines()] == [
        "merge.params.density)", "merge.params.beta)", "merge.params.rank)",
    ]  # fmt: skip


def test_tsv_m_refuses_more_experts_than_dimensions() -> None:
    with pytest.raises(UserError, match="5 experts cannot share a module of 4 x 50"):
        tsv_m.merge(experts_of([1] * 5, d_out=4))
