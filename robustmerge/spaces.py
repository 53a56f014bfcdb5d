"""The spaces a merge can happen in: how the experts' updates of one module become coordinates, and the way back.

A space is two functions. encode: T pairs -> (stack, basis), the stack a mapping part -> float32 [T, ...];
decode: (merged parts, basis) -> LoraPair, or the dense update [d_out, d_in] where it has no low rank.
To add a space: two functions, an entry in the table, its name in `method.py`, a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustmerge.adapter import LoraPair

Stack = dict[str, Tensor]


@dataclass(frozen=True)
class Space:
    """One row of the table."""

    encode: Callable[[Sequence[LoraPair]], tuple[Stack, Any]]
    decode: Callable[[Stack, Any], LoraPair | Tensor]


def encode_factors(pairs: Sequence[LoraPair]) -> tuple[Stack, None]:
    """A and B apart: {A: [T, r, d_in], B: [T, d_out, r]}. All ranks must be equal."""
    return {"A": torch.stack([p.A for p in pairs]), "B": torch.stack([p.B for p in pairs])}, None


def decode_factors(merged: Stack, basis: None) -> LoraPair:
    """The pair of the merged parts: its update is (merged B)(merged A), cross terms between experts included."""
    return LoraPair(merged["A"], merged["B"])


def encode_delta(pairs: Sequence[LoraPair]) -> tuple[Stack, None]:
    """The dense updates: {M: [T, d_out, d_in]}, M_n = B_n A_n."""
    return {"M": torch.stack([p.B @ p.A for p in pairs])}, None


def decode_delta(merged: Stack, basis: None) -> Tensor:
    """The dense update itself."""
    return merged["M"]


def concatenate(pairs: Sequence[LoraPair], factors: Sequence[float]) -> LoraPair:
    """sum_n f_n B_n A_n, exactly: A = [A_1; ...; A_N], B = [f_1 B_1 ... f_N B_N], rank the sum of the ranks."""
    A = torch.cat([p.A for p in pairs], dim=0)  # [sum r_n, d_in]
    B = torch.cat([p.B * f for p, f in zip(pairs, factors, strict=True)], dim=1)  # [d_out, sum r_n]
    return LoraPair(A, B)


def truncate(update: LoraPair | Tensor, rank: int | None) -> LoraPair | Tensor:
    """The best approximation of the given rank, by singular values; unchanged if its rank is not above that.

    A pair goes through two QR decompositions and an SVD of its core, so that the dense update is never formed.
    """
    if rank is None or (isinstance(update, LoraPair) and update.rank <= rank):
        return update
    if isinstance(update, LoraPair):
        left, core_left = torch.linalg.qr(update.B.double())  # [d_out, p], [p, R]
        right, core_right = torch.linalg.qr(update.A.double().T)  # [d_in, q], [q, R]
        u, s, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
        u, v = left @ u, v @ right.T
    else:
        u, s, v = torch.linalg.svd(update.double(), full_matrices=False)
    return LoraPair(v[:rank].float().contiguous(), (u[:, :rank] * s[:rank]).float().contiguous())


SPACES: dict[str, Space] = {
    "factors": Space(encode_factors, decode_factors),
    "delta": Space(encode_delta, decode_delta),
}
