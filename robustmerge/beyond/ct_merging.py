"""CT-Merging: what the experts have in common, and beside it what each has of its own (arXiv 2607.20561).

    D_n = U_n diag(s_n) V_n^T, the first residual_rank directions of each
    U_c = the first k left singular vectors of [U_1 ... U_N], k = common_rank
    mean_n U_c^T D_n = P diag(s_c) Q^T, of the whole D_n                              the common response
    W_n = U_n - U_c U_c^T U_n
    D = strength * polar([U_c P, W_1 ... W_N]) diag(rms(s_c), rms(s_1) ... rms(s_N)) polar([Q, V_1 ... V_N])^T

rms(s) stands once for every column of its block. The columns are more than their rank, since U_c P lies in the span of
the U_n and Q in that of the V_n, so polar() must be the partial isometry on that span: a completion would be arbitrary.

Low-rank route: per expert QR and SVD of its factors, U_c, the response and the polar factors by QR and small SVDs. The
result is an adapter of rank N r at most.

No code of the paper's authors is public. This is its algorithm 1; the cases in the tests come from a third party's
implementation, and a dense computation of the formula agrees with them. The rules where the formula says nothing are
that party's: k is lowered until the singular values at the cut differ, since U_c would be arbitrary otherwise; a zero
column of W_n is left out, with that of V_n; an all-zero expert counts in no mean; a single expert is returned as it is.
Here differences below 1e-6 count as none, there those below 1e-15, and strength also multiplies a single expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import qr, svd

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, Spectrum, decompose, make_pair, orthonormal_basis, polar, stack_spectra
from robustmerge.stage.settings import UserError


def merge(
    pairs: Sequence[LoraPair], common_rank: int = 4, residual_rank: int | None = 16, strength: float = 1.0
) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert changes nothing.

    common_rank: k. residual_rank: directions of each expert, all if null. Raises UserError for a number out of range.
    """
    problems = []
    if common_rank < 0:
        problems.append(f"common_rank must be at least 0, got {common_rank} (merge.params.common_rank)")
    if residual_rank is not None and residual_rank < 1:
        problems.append(f"residual_rank must be at least 1, got {residual_rank} (merge.params.residual_rank)")
    if problems:
        raise UserError("\n".join(problems))
    everyone = [decompose(pair) for pair in pairs]
    experts = [x for x in everyone if len(x.s)]
    if len(experts) < 2:
        alone = stack_spectra(everyone)
        return make_pair(strength * alone.U * alone.s, alone.V)
    leading = [Spectrum(x.U[:, :residual_rank], x.s[:residual_rank], x.V[:, :residual_rank]) for x in experts]
    shared = _find_common(stack_spectra(leading).U, common_rank)  # U_c [d_out, k]
    stacked = stack_spectra([_respond(experts, shared), *(_take_out(x, shared) for x in leading)])
    right = orthonormal_basis(stacked.V)  # [d_in, p], p <= N r
    return make_pair(strength * (polar(stacked.U) * stacked.s) @ (polar(stacked.V).T @ right), right)


def _find_common(columns: Tensor, k: int) -> Tensor:
    """The first k left singular vectors, or fewer: no cut between values that are equal. columns [d, n] -> [d, k]."""
    Q, R = qr(columns)
    u, s, _ = svd(R, full_matrices=False)
    s = s[s > CUT * s[0]]
    while 0 < k < len(s) and s[k - 1] - s[k] <= CUT * s[0]:
        k -= 1
    return Q @ u[:, : min(k, len(s))]


def _respond(experts: Sequence[Spectrum], shared: Tensor) -> Spectrum:
    """The common response, as U_c P, rms(s_c), Q. shared: U_c [d_out, k]."""
    response = sum((shared.T @ x.U * x.s) @ x.V.T for x in experts) / len(experts)  # [k, d_in]
    P, s, Qh = svd(response, full_matrices=False)
    kept = s > CUT * max(float(x.s[0]) for x in experts)
    return Spectrum(shared @ P[:, kept], _flatten(s[kept]), Qh[kept].T)


def _take_out(x: Spectrum, shared: Tensor) -> Spectrum:
    """What the expert has beside the common directions, as W_n, rms(s_n), V_n. shared: U_c [d_out, k]."""
    rest = x.U - shared @ (shared.T @ x.U)
    kept = rest.norm(dim=0) > CUT
    return Spectrum(rest[:, kept], _flatten(x.s)[kept], x.V[:, kept])


def _flatten(s: Tensor) -> Tensor:
    """The root of the mean square, in every place. s [k] -> [k]."""
    return torch.full_like(s, float(s.square().mean().sqrt()))
