"""Iso-CTS: the leading directions of the sum, and each expert's own beside them (https://arxiv.org/abs/2502.04959).

    sum_n D_n = U diag(s) V^T, R directions;   k = round((R - int(common R)) / N),   c = R - N k
    (I - U_c U_c^T) D_n = U_n diag(s_n) V_n^T, its first k directions, U_c = U[:, :c]
    D = strength * mean(s_c, s_1, ..., s_N) * polar([U_c U_1 ... U_N]) polar([V_c V_1 ... V_N])^T

Low-rank route: the sum is the pair of the stacked factors; what an expert has beyond U_c lies in its own V_n and needs
an SVD of r x r; the polar factors come from a QR decomposition and an SVD of R x R. The result is an adapter of rank
R <= N r.

Where the authors' code (https://github.com/danielm1405/iso-merging) differs: it has min(d_out, d_in) in the place of R.
With LoRA R is below that as a rule (128 of 4096), and the further directions are an arbitrary basis of the null space,
which polar() mixes with the others. Here all is over the R directions that the sum has, as in iso_c.py, and so is the
mean: a strength found with their code must be divided by min(d_out, d_in) / R. Where R = min(d_out, d_in) the two are
the same. N counts the experts that have an update, theirs counts all; and an expert with fewer than k directions beyond
U_c brings those that it has, theirs adds arbitrary ones. Where experts share A, R may be too small to be shared out
(k = 0): that is Iso-C.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.linalg import qr, svd

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, Spectrum, decompose, decompose_sum, make_pair, polar, stack_spectra
from robustmerge.stage.settings import UserError


def merge(pairs: Sequence[LoraPair], common: float = 0.8, strength: float = 1.0) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert changes nothing.

    common: the share of the sum's directions that is kept as common; 1 is Iso-C. Raises UserError if not in [0, 1].
    """
    if not 0 <= common <= 1:
        raise UserError(f"common must be in [0, 1], got {common} (merge.params.common)")
    total = decompose_sum(pairs)
    spectra = [x for x in map(decompose, pairs) if len(x.s)]
    directions, experts = len(total.s), max(1, len(spectra))
    k = min(round((directions - int(directions * common)) / experts), directions // experts)
    c = directions - k * len(spectra)
    shared = Spectrum(total.U[:, :c], total.s[:c], total.V[:, :c])
    stacked = stack_spectra([shared, *(_own_directions(x, shared.U, k) for x in spectra)])
    return make_pair(strength * stacked.s.sum() / max(1, len(stacked.s)) * polar(stacked.U), polar(stacked.V))


def _own_directions(x: Spectrum, shared: Tensor, k: int) -> Spectrum:
    """The first k singular directions of (I - U_c U_c^T) D_n, without rounding. shared: U_c [d_out, c]."""
    Q, R = qr((x.U - shared @ (shared.T @ x.U)) * x.s)
    u, s, vh = svd(R, full_matrices=False)
    k = min(k, int((s > CUT * x.s[0]).sum()))
    return Spectrum(Q @ u[:, :k], s[:k], x.V @ vh[:k].T)
