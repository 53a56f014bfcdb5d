"""Linear algebra on low-rank updates: exact, in float64, and never with a matrix of d_out x d_in.

Only directions that are there are kept, all through: the singular vectors of a null space are an arbitrary basis, which
another machine chooses differently, so nothing that is computed from them can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustmerge.adapter import LoraPair
from robustmerge.spectra import CUT, Spectrum, decompose


def leading(pair: LoraPair, rank: int | None) -> Spectrum:
    """The first `rank` singular directions of B A, or all if it is None; none at all of a zero update."""
    found = decompose(pair)
    return Spectrum(found.U[:, :rank], found.s[:rank], found.V[:, :rank])


def side_by_side(spectra: Sequence[Spectrum]) -> Spectrum:
    """All experts' directions: U [d_out, R], s [R], V [d_in, R] with R the sum of the ranks."""
    return Spectrum(*(torch.cat([getattr(x, part) for x in spectra], dim=-1) for part in ("U", "s", "V")))


def basis_of(columns: Tensor) -> Tensor:
    """An orthonormal basis of what the columns span. columns [d, k] -> [d, p], p <= min(d, k)."""
    left, _ = _directions(columns)
    return left


def polar(columns: Tensor) -> Tensor:
    """P Q^T of columns = P diag(s) Q^T: the nearest matrix of orthonormal columns. columns [d, k] -> [d, k].

    Where the columns depend on each other it is the partial isometry on their span, to which published codes add an
    arbitrary completion.
    """
    left, right = _directions(columns)
    return left @ right


def pair_of(left: Tensor, right: Tensor) -> LoraPair:
    """The update left @ right^T as a pair in float32; a zero of rank 1 if R is 0. left [d_out, R], right [d_in, R]."""
    if left.shape[1] == 0:
        left, right = left.new_zeros(len(left), 1), right.new_zeros(len(right), 1)
    return LoraPair(right.T.float().contiguous(), left.float().contiguous())


def _directions(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left [d, p] and right [p, k] singular vectors of columns [d, k], through a QR decomposition."""
    Q, R = torch.linalg.qr(columns)
    left, s, right = torch.linalg.svd(R, full_matrices=False)
    there = s > CUT * (s[0] if len(s) else 1.0)
    return Q @ left[:, there], right[there]
