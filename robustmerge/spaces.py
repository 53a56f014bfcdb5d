"""The spaces in which a merge can happen: the experts' updates of one module to coordinates and back.

A space is one function: T pairs -> `Coordinates`. `knots` and `core` go through the QR decomposition of the stacked
factors and an SVD of at most (sum of ranks) x (sum of ranks), in float64, so that no dense update is ever formed.
To add a space: a function here, an entry in the table, its name in `method_parts.py`, a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, svd

from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method
from robustmerge.method_parts import Basis

BLOCK = 1 << 18  # entries of one expert's dense update that are formed at once

Blocks = Sequence[Callable[[], list[Tensor]]]  # the pieces of a part, in order; each gives the T experts' tensors


class Coordinates(NamedTuple):
    """The T experts in one space. parts: name -> its blocks. decode: merged part -> the update of the module.

    The update is a LoraPair, or the dense [d_out, d_in] where it has no low rank.
    """

    parts: Mapping[str, Blocks]
    decode: Callable[[dict[str, Tensor]], LoraPair | Tensor]


def factors(pairs: Sequence[LoraPair], method: Method) -> Coordinates:
    """A [r, d_in] and B [d_out, r] apart; the update is (merged B)(merged A), cross terms between experts included."""
    parts = {"A": [lambda: [p.A for p in pairs]], "B": [lambda: [p.B for p in pairs]]}
    return Coordinates(parts, lambda merged: LoraPair(merged["A"], merged["B"]))


def delta(pairs: Sequence[LoraPair], method: Method) -> Coordinates:
    """The dense updates M_n = B_n A_n, some rows at a time [rows, d_in]."""
    d_out, d_in = pairs[0].B.shape[0], pairs[0].A.shape[1]
    rows = max(1, BLOCK // d_in)
    starts = range(0, d_out, rows)

    def form(start: int) -> Callable[[], list[Tensor]]:
        return lambda: [p.B[start : start + rows] @ p.A for p in pairs]

    return Coordinates({"M": [form(start) for start in starts]}, lambda merged: merged["M"])


def knots(pairs: Sequence[LoraPair], method: Method) -> Coordinates:
    """KnOTS (https://arxiv.org/abs/2410.19735): [M_1 ... M_N] = U diag(s) [V_1 ... V_N]; coordinates P_n = diag(s) V_n.

    With [B_1 ... B_N] = Q R and A_n^T = Q_n L_n^T, U = Q U' from the SVD of the small [R_1 L_1 ... R_N L_N] =
    U' diag(s) V', exactly; and P_n = U^T B_n A_n [R, d_in]. Singular values up to `basis.cut` are dropped.
    Published code: forms the dense updates in the checkpoint's dtype, whose rounding passes the cut in half precision.
    """
    Q, R = qr(torch.cat([p.B.double() for p in pairs], dim=1))  # [d_out, p], [p, sum r]
    shares = R.split([p.rank for p in pairs], dim=1)
    small = [share @ qr(p.A.double().T, mode="r").R.T for share, p in zip(shares, pairs, strict=True)]
    left, s, _ = svd(torch.cat(small, dim=1), full_matrices=False)
    U = Q @ left[:, _above(s, method.basis)]  # [d_out, R]
    coordinates = [((U.T @ p.B.double()) @ p.A.double()).float() for p in pairs]
    return Coordinates({"P": [lambda: coordinates]}, lambda merged: LoraPair(merged["P"], U.float()))


def _above(s: Tensor, basis: Basis) -> Tensor:
    """Which singular values are above the cut, at least one."""
    kept = s > (basis.cut * s[0] if basis.relative else basis.cut)
    kept[0] = True
    return kept


def core(pairs: Sequence[LoraPair], method: Method) -> Coordinates:
    """Core Space (https://arxiv.org/abs/2509.17786): M_n = U^T B_n A_n V.

    U [d_out, p]: left singular vectors of [B_1 ... B_N]; V [d_in, q]: right singular vectors of [A_1; ...; A_N].
    Directions that no expert uses have coordinates of exactly 0, where rounding would leave votes for a sign.
    """
    U, used_out = _left_vectors(torch.cat([p.B.double() for p in pairs], dim=1))
    V, used_in = _left_vectors(torch.cat([p.A.double() for p in pairs], dim=0).T)
    used = used_out[:, None] & used_in  # [p, q]
    coordinates = [torch.where(used, (U.T @ p.B.double()) @ (p.A.double() @ V), 0.0).float() for p in pairs]
    return Coordinates({"M": [lambda: coordinates]}, lambda merged: LoraPair(V.T.float(), U.float() @ merged["M"]))


def _left_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of x [d, n], and which of them have a singular value above rounding."""
    Q, R = qr(x)
    left, s, _ = svd(R, full_matrices=False)
    return Q @ left, s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps


SPACES: dict[str, Callable[[Sequence[LoraPair], Method], Coordinates]] = {
    "factors": factors,
    "delta": delta,
    "knots": knots,
    "core": core,
}
