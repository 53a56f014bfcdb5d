"""Spectra of low-rank updates D = B A, exact and without ever forming the dense update (`spaces.svd_of_pair`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.adapter import LoraPair
from robustmerge.spaces import concatenate, svd_of_pair

CUT = 1e-6  # directions below this fraction of the largest singular value are rounding of float32 factors


@dataclass(frozen=True)
class Spectrum:
    """D = U diag(s) V^T in float64. U: [d_out, k], s: [k], falling, V: [d_in, k]; k: the directions D really has."""

    U: Tensor
    s: Tensor
    V: Tensor

    @property
    def norm(self) -> float:
        """||D||_F."""
        return float(self.s.norm())


def decompose(pair: LoraPair) -> Spectrum:
    """The singular value decomposition of B A. Directions that are only rounding are left out: k <= rank.

    >>> decompose(LoraPair(A=torch.tensor([[0.0, 3.0]]), B=torch.tensor([[0.0], [2.0]]))).s
    tensor([6.], dtype=torch.float64)
    """
    U, s, V = svd_of_pair(pair)
    there = s > CUT * s[0]  # nothing at all where s[0] is 0
    return Spectrum(U[:, there], s[there], V[:, there])


def decompose_sum(pairs: Sequence[LoraPair], weights: Sequence[float] | None = None) -> Spectrum:
    """The same for sum_n w_n B_n A_n, through the concatenation of the factors; ranks may differ."""
    return decompose(concatenate(pairs, [1.0] * len(pairs) if weights is None else weights))


def singular_values(pair: LoraPair) -> Tensor:
    """All min(r, d_out, d_in) singular values of B A, falling, rounding included; cheaper than `decompose`."""
    core_left = torch.linalg.qr(pair.B.double(), mode="r").R
    core_right = torch.linalg.qr(pair.A.double().T, mode="r").R
    return torch.linalg.svdvals(core_left @ core_right.T)


def energy_of_first(s: Tensor) -> float:
    """s_1^2 / sum_k s_k^2; 0 for a zero update."""
    return float(s[0] ** 2 / s.square().sum()) if len(s) and s[0] > 0 else 0.0


def effective_rank(s: Tensor) -> float:
    """exp(-sum p_k log p_k), p = s / sum s (Roy and Vetterli 2007): n equal values give n; 0 for a zero update."""
    if not len(s) or s[0] == 0:
        return 0.0
    p = s[s > 0] / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


class Pairwise(NamedTuple):
    """How N updates lie to one another, each [N, N].

    inner: <D_i, D_j>. columns: ||U_i^T U_j||_F^2 / min(k_i, k_j), 1 if one column space holds the other, 0 if they are
    orthogonal. rows: the same of V. Two random subspaces of R^d give about max(k_i, k_j) / d.
    """

    inner: Tensor
    columns: Tensor
    rows: Tensor


def compare(spectra: Sequence[Spectrum]) -> Pairwise:
    """All pairs at once: the blocks of U^T U and V^T V of the concatenated bases."""
    ranks = torch.tensor([len(x.s) for x in spectra])
    s, U, V = (torch.cat([getattr(x, part) for x in spectra], dim=-1) for part in ("s", "U", "V"))
    left, right = U.T @ U, V.T @ V  # [K, K], K = sum of the k
    member = torch.eye(len(spectra), dtype=s.dtype).repeat_interleave(ranks, dim=1)  # [N, K]

    def add_up_blocks(x: Tensor) -> Tensor:
        return member @ x @ member.T

    smaller = torch.minimum(ranks[:, None], ranks[None, :]).clamp(min=1)
    return Pairwise(
        inner=add_up_blocks(left * right * s[:, None] * s[None, :]),
        columns=add_up_blocks(left.square()) / smaller,
        rows=add_up_blocks(right.square()) / smaller,
    )


def compare_A(pairs: Sequence[LoraPair]) -> Tensor:
    """<A_i, A_j> / (||A_i|| ||A_j||) for all pairs [N, N], near 1 if both began with the same A; 0 for a zero A.

    Where ranks differ, over the rows that both have.
    """
    flat = [pair.A.flatten().double() for pair in pairs]  # row by row: the first entries are the first rows
    cosines = torch.eye(len(pairs), dtype=torch.float64)
    for i, x in enumerate(flat):
        for j, y in enumerate(flat[:i]):
            n = min(len(x), len(y))
            length = x[:n].norm() * y[:n].norm()
            cosines[i, j] = cosines[j, i] = x[:n] @ y[:n] / length if length > 0 else 0.0
    return cosines
