"""DC-Merge: smooth the experts' singular values, merge where their directions agree (arXiv 2603.06242, CVPR 2026).

    D_n = U_n diag(s_n) V_n^T;   e_n = sum(s_n) w,   w = 1/r each (avg), or linear from min(rho, s_n[1]/s_n[r]) to 1
    C_U = polar([U_1 ... U_N]),   C_V = polar([V_1 ... V_N])                  the cover bases
    M_n = C_U^T U_n diag(e_n) V_n^T C_V,   of which the largest entries are kept        [N r, N r]
    M = mean of the kept entries that have the sign of their sum, only in the N blocks of r x r on the diagonal
    D = strength * C_U M C_V^T

Low-rank route: per expert QR and SVD of its factors, the cover bases by QR and an SVD of N r x N r. The result is an
adapter of rank N r.

Where the authors' code (https://github.com/Tobeginwith/DC-Merge) differs: it keeps 0.1 % of each M_n, which is the
default here; the paper's text says 10 %. With eight experts of rank 16 that is 16 entries of 16384, one for each of an
expert's directions; with fewer or smaller experts most directions are lost, and a merge says so at its end. Their code
also cuts every expert to 16 directions, whatever its rank; needs N r <= min(d_out, d_in); and with an all-zero expert
gets arbitrary vectors in the cover bases, and NaN with linear smoothing. Where experts share directions, so that a
cover basis is not a basis, it adds an arbitrary completion; here none is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import decompose_leading, make_pair, polar, stack_spectra
from robustmerge.stage.settings import UserError, choose

PAPERS_DENSITY = 0.1  # in its text


def merge(
    pairs: Sequence[LoraPair],
    smoothing: str = "avg",
    rho: float = 5.0,
    density: float = 0.001,
    rank: int | None = None,
    strength: float = 2.0,
) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert changes nothing.

    smoothing: avg | linear (with rho). density: of each M_n, the fraction kept. rank: directions of each expert, all
    if null. Raises UserError for another name or a number out of range.
    """
    choose(smoothing, ("avg", "linear"), "smoothing of dc_merge (merge.params.smoothing)")
    problems = [] if 0 < density <= 1 else [f"density must be in (0, 1], got {density} (merge.params.density)"]
    problems += [] if rho >= 1 else [f"rho must be at least 1, got {rho} (merge.params.rho)"]
    if rank is not None and rank < 1:
        problems.append(f"rank must be at least 1, got {rank} (merge.params.rank)")
    if problems:
        raise UserError("\n".join(problems))
    spectra = [decompose_leading(pair, rank) for pair in pairs]
    stacked = stack_spectra(spectra)
    left, right = polar(stacked.U), polar(stacked.V)  # [d_out, R], [d_in, R], R = N r
    parts = [(left.T @ x.U) * _smooth(x.s, smoothing, rho) @ (x.V.T @ right) for x in spectra]  # N of [R, R]
    merged = elected_mean(torch.stack([_keep_largest(part, density) for part in parts]))
    blocks = torch.block_diag(*(merged.new_ones(len(x.s), len(x.s)) for x in spectra))
    return make_pair(strength * left @ (merged * blocks), right)


def find_warnings(
    ranks: Mapping[str, Sequence[int]], density: float = 0.001, rank: int | None = None, **others: object
) -> list[str]:
    """Warn where fewer coordinates of an expert are kept than it has directions, so that some are lost.

    ranks: module -> the ranks of its experts.
    """
    poor = []
    for module, every in ranks.items():
        directions = [min(r, rank or r) for r in every]
        size, most = sum(directions) ** 2, max(directions)
        if (count := max(1, int(density * size))) < most:
            poor.append(f"{count} of the {size} coordinates of an expert with {most} directions in {module}")
    if not poor or density >= PAPERS_DENSITY:
        return []
    return [
        f"density={density:g} keeps {poor[0]}, and less than one a direction in {len(poor)} of {len(ranks)} modules; "
        f"the paper's text has 10 %: merge.params.density={PAPERS_DENSITY:g}"
    ]


def _smooth(s: Tensor, smoothing: str, rho: float) -> Tensor:
    """The energy sum(s), spread over its directions. s [r], descending -> [r]."""
    if smoothing == "avg" or len(s) == 0:
        return torch.full_like(s, s.sum() / max(1, len(s)))
    w = torch.linspace(min(rho, float(s[0] / s[-1])), 1.0, len(s), dtype=s.dtype, device=s.device)
    return s.sum() * w / w.sum()


def _keep_largest(x: Tensor, density: float) -> Tensor:
    """x, with the largest int(density n) magnitudes kept, at least one, and all that equal the smallest of them."""
    count = max(1, int(density * x.numel()))
    if x.numel() == 0:
        return x
    return x * (x.abs() >= x.abs().flatten().topk(count).values[-1])


def elected_mean(stack: Tensor) -> Tensor:
    """Of each entry the mean over the experts that have the sign of the sum; 0 where the sum is. [N, ...] -> [...]."""
    agree = stack.sign() == stack.sum(0).sign()  # where the sum is 0 only zeros agree
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
