"""Iso-C: the sum of the updates with all its singular values made equal (https://arxiv.org/abs/2502.04959).

    sum_n D_n = U diag(s) V^T
    D = strength * mean(s) * U V^T,   over the R directions that the sum has

Low-rank route: the sum is the pair of the stacked factors, its SVD two QR decompositions and an SVD of N r x N r. The
result is an adapter of rank R <= N r.

Where the authors' code differs: it takes the mean, and U V^T, over all min(d_out, d_in) directions. For R below that
(the rule with LoRA: 128 of 4096) the rest of U V^T is an arbitrary rotation of the null space, and input noise of 1e-7
changes their result by about 120 %. Restricted to the directions that are there it is determined. The mean is over
these R too, so that sum(s) is kept as in the paper; it is min(d_out, d_in) / R times the mean of the authors' code (32
times for eight experts of rank 16 in LLaVA-1.5-7B), and a strength found with theirs must be divided by that. Where
R = min(d_out, d_in) the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import decompose_sum, make_pair


def merge(pairs: Sequence[LoraPair], strength: float = 1.0) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert changes nothing."""
    total = decompose_sum(pairs)
    return make_pair(strength * total.s.sum() / max(1, len(total.s)) * total.U, total.V)
