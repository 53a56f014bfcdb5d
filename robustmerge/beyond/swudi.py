"""SWUDI and ASWUDI: the least interference between experts in closed form, filtered by its spectrum.

WUDI (https://arxiv.org/abs/2503.08099) looks for the update T that minimises sum_n w_n |(T - D_n) D_n^T|^2 with
w_n = 1/|D_n|^2, by gradient descent. The minimum solves T C = F:

    C = sum_n w_n D_n^T D_n = V diag(l) V^T,   F = sum_n w_n D_n D_n^T D_n
    T = T_0 (I - V diag(f) V^T) + F V diag(f/l) V^T,   T_0 = sum_n D_n, or their mean;   D = strength * T

    swudi:  f = 1 - exp(-time * l) on the ceil(share * d_in) largest l, 0 on the others
    aswudi: f = 1 on the K largest l, 0 on the others; K = ceil((sum sqrt l)^2 / sum l)

Both are from https://github.com/WalkerWorldPeace/MLLMerging (LLaMA-Factory/swudi_aswudi.py).

Low-rank route: C lives on the p <= N r directions that the rows of the D_n span, where it is p x p; its other d_in - p
eigenvalues are 0, raised to 1e-8 as all are, and count in K. The result is an adapter of rank p. With LoRA share *
d_in is above p as a rule, and then cuts nothing.

Where the authors' code differs: it forms C in full, d_in x d_in in float32, and raises |D_n|^2 to 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import decompose, make_pair, orthonormal_basis, stack_spectra
from robustmerge.stage.settings import UserError, choose

SMALLEST = 1e-8  # eigenvalue


def merge(
    pairs: Sequence[LoraPair],
    variant: str = "swudi",
    init: str = "sum",
    time: float = 300.0,
    share: float = 0.65,
    strength: float = 1.0,
) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert counts in the mean of init and changes nothing else.

    variant: swudi | aswudi. init: sum | mean, of T_0. time, share: of swudi.
    Raises UserError for another name or a number out of range.
    """
    choose(variant, ("swudi", "aswudi"), "variant of swudi (merge.params.variant)")
    choose(init, ("sum", "mean"), "init of swudi (merge.params.init)")
    problems = [] if 0 <= share <= 1 else [f"share must be in [0, 1], got {share} (merge.params.share)"]
    problems += [] if time >= 0 else [f"time must be at least 0, got {time} (merge.params.time)"]
    if problems:
        raise UserError("\n".join(problems))
    spectra = [decompose(pair) for pair in pairs]
    energy = torch.cat([(x.s / x.norm) ** 2 for x in spectra])  # [R]: w_n s^2, R = sum of the ranks
    stacked = stack_spectra(spectra)
    basis = orthonormal_basis(stacked.V)  # [d_in, p]
    rows = stacked.V.T @ basis  # [R, p]
    values, W = torch.linalg.eigh(rows.T @ (energy[:, None] * rows))  # C, ascending [p], [p, p]
    values = values.clamp(min=SMALLEST)
    gain = _gain(values, basis.shape[0], variant, time, share)
    start = stacked.s[:, None] * rows / (len(pairs) if init == "mean" else 1)  # T_0 = U start basis^T
    solved = (stacked.s * energy)[:, None] * rows  # F = U solved basis^T
    T = start - (start @ W * gain) @ W.T + (solved @ W * (gain / values)) @ W.T  # [R, p]
    return make_pair(strength * stacked.U @ T, basis)


def _gain(values: Tensor, d_in: int, variant: str, time: float, share: float) -> Tensor:
    """f, for the p eigenvalues in ascending order; the d_in - p that are not among them are SMALLEST."""
    if variant == "swudi":
        count, gain = math.ceil(share * d_in), 1 - torch.exp(-time * values)
    else:
        rest = d_in - len(values)
        roots = values.sqrt().sum() + rest * math.sqrt(SMALLEST)
        count, gain = math.ceil(roots**2 / (values.sum() + rest * SMALLEST)), torch.ones_like(values)
    gain[: max(0, len(values) - count)] = 0
    return gain
