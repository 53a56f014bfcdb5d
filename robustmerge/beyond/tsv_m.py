"""TSV-Merge: decorrelate the experts' leading singular vectors, then add (https://arxiv.org/abs/2412.00081).

    D_n = U_n S_n V_n^T, the first k directions of each
    U = [U_1 ... U_N], S = diag(S_1, ..., S_N), V = [V_1 ... V_N]
    D = strength * polar(U) S polar(V)^T,   polar(X) = P Q^T of the SVD X = P Sigma Q^T

Low-rank route: the directions of each expert come from its factors, the polar factors from a QR decomposition and an
SVD of N k x N k. The result is an adapter of rank N k.

Where the authors' code differs: it takes k = int(min(d_out, d_in) / N) whatever the rank r of the experts. Beyond r
these are vectors of the null space, an arbitrary basis, which polar() mixes with the others: input noise of 1e-7 then
changes the result by about 75 %. Here k = min(int(min(d_out, d_in) / N), r), which is the same wherever theirs is
determined; and an all-zero expert contributes nothing, not the arbitrary vectors of its zero singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import decompose_leading, make_pair, polar, stack_spectra
from robustmerge.stage.settings import UserError


def merge(pairs: Sequence[LoraPair], strength: float = 1.0) -> LoraPair:
    """Merge one module. Ranks may differ. Raises UserError if there are more experts than dimensions."""
    d_out, d_in = pairs[0].B.shape[0], pairs[0].A.shape[1]
    k = min(d_out, d_in) // len(pairs)
    if k < 1:
        raise UserError(
            f"tsv_m gives each expert an equal share of the dimensions, and {len(pairs)} experts cannot share a "
            f"module of {d_out} x {d_in}; merge fewer experts, or leave modules as small as that out"
        )
    stacked = stack_spectra([decompose_leading(pair, k) for pair in pairs])
    return make_pair(strength * polar(stacked.U) * stacked.s, polar(stacked.V))
