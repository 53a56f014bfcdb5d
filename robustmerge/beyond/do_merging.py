"""DO-Merging: the experts' directions and lengths are averaged apart, column by column (arXiv 2505.15875).

    c_n[j] = |column j of D_n|
    D = strength * sum_n D_n diag(mean_m c_m / c_n) / N                    mean length times mean direction

Low-rank route: c_n are the column norms of R_n A_n, B_n = Q_n R_n, and the scales go to the columns of A_n. The result
is an adapter of rank N r.

No code of the paper's authors was found. The cases in the tests come from a third party's reading, which multiplies
sum_n D_n diag(sum_m c_m / c_n) by 1/N^2, as here, or by 1/N, which is strength=N. The step before this one, which makes
the experts more orthogonal to one another by gradient descent on their factors, is left out.

Where that code differs: it raises c_n to 1e-15, so that an all-zero expert gets scales of 1e14. Here a column that is
zero in an expert gets the scale 0. In both, such a column still counts in the means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.linalg import qr

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, make_pair


def merge(pairs: Sequence[LoraPair], strength: float = 1.0) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert counts in the means and brings no direction."""
    norms = torch.stack([(qr(p.B.double(), mode="r").R @ p.A.double()).norm(dim=0) for p in pairs])  # c [N, d_in]
    has_column = norms > CUT * norms.amax(dim=1, keepdim=True)
    scales = torch.where(has_column, norms.mean(0) / norms, 0.0) * strength / len(pairs)
    left = torch.cat([p.B.double() for p in pairs], dim=1)  # [d_out, N r]
    return make_pair(left, torch.cat([p.A * scale for p, scale in zip(pairs, scales, strict=True)]).T)
