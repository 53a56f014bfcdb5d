"""Compress-then-Merge: the best common subspaces of rank r first, then any rule in them (arXiv 2606.03723, ICML 2026).

    M_n = U_B^T D_n V_A                                the experts in core space, bases of all B and of all A
    T_n = M_n / |M_n| * (beta |M_n| + (1 - beta) mean_m |M_m|)                             balanced targets
    U, V = argmax sum_n |U^T T_n V|^2, orthonormal, of rank r                            Tucker-2 of the stack
    O_n = U^T M_n V                                                  r x r coordinates of the experts themselves
    D = strength * U_B U rule(O_1, ..., O_N) V^T V_A^T,   rule: ties | sum

Tucker-2 starts from the singular vectors of the stack's two unfoldings (HOSVD) and alternates between U and V (HOOI)
until the relative error moves by less than 1e-6. The result is an adapter of rank r by construction.

Low-rank route: all of it is, in N r x N r matrices. Any bases of the spans of all B and A give the same result.

Where the authors' code (https://github.com/ZhengbaoHe/compress-then-merge) differs: it leaves alpha/r out and runs in
float32; an all-zero expert makes its targets NaN, and is left out of them here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import decompose, make_pair, orthonormal_basis, stack_spectra
from robustmerge.rules import elect, trim
from robustmerge.stage.settings import UserError, choose

TOLERANCE, MOST_ROUNDS = 1e-6, 1000


def merge(
    pairs: Sequence[LoraPair],
    rule: str = "ties",
    density: float = 0.25,
    beta: float = 0.25,
    rank: int | None = None,
    strength: float = 0.75,
) -> LoraPair:
    """Merge one module. Ranks may differ.

    rule: ties (over each O_n its own threshold, TIES' authors' count, disjoint mean) | sum. density: of ties, kept.
    beta: 1 keeps the experts' norms in the targets, 0 makes them equal. rank: null for the largest of the experts.
    Raises UserError for another rule or a number out of range.
    """
    choose(rule, ("ties", "sum"), "rule of compress_then_merge (merge.params.rule)")
    _check(density, beta, rank)
    spectra = [decompose(pair) for pair in pairs]
    stacked = stack_spectra(spectra)
    left, right = orthonormal_basis(stacked.U), orthonormal_basis(stacked.V)  # [d_out, p], [d_in, q]
    cores = torch.stack([(left.T @ x.U) * x.s @ (x.V.T @ right) for x in spectra])  # M [N, p, q]
    rank = min(rank or max(pair.rank for pair in pairs), *cores.shape[1:])
    u, v = tucker(_targets(cores, beta), rank)
    merged = RULES[rule](u.T @ cores @ v, density)  # [r, r]
    return make_pair(strength * left @ u @ merged, right @ v)


def tucker(stack: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [p, r] and V [q, r], orthonormal, that keep the most of sum_n |U^T T_n V|^2. stack: T [N, p, q]."""
    total = stack.norm()
    u, v = _leading(stack, rank), _leading(stack.mT, rank)
    errors: list[float] = []
    for _ in range(MOST_ROUNDS if total > 0 else 0):
        u = _leading(stack @ v, rank)
        v = _leading(stack.mT @ u, rank)
        kept = (u.T @ stack @ v).norm()
        errors.append(math.sqrt(abs(float(total**2 - kept**2))) / float(total))
        if len(errors) > 2 and abs(errors[-2] - errors[-1]) < TOLERANCE:
            break
    return u, v


def _leading(stack: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of [X_1 ... X_N], from its Gram matrix. stack: X [N, p, k] -> [p, r]."""
    _, vectors = torch.linalg.eigh((stack @ stack.mT).sum(0))
    return vectors[:, vectors.shape[1] - rank :].flip(1)


def _targets(cores: Tensor, beta: float) -> Tensor:
    norms = cores.flatten(1).norm(dim=1)  # [N]
    has_update = norms > 0
    mean = norms.sum() / max(1, int(has_update.sum()))
    gain = torch.where(has_update, beta + (1 - beta) * mean / norms, 0.0)
    return cores * gain[:, None, None]


def _sum(stack: Tensor, density: float) -> Tensor:
    return stack.sum(0)


def _ties(stack: Tensor, density: float) -> Tensor:
    trimmed = [trim(x, density, "authors") for x in stack.float()]
    return elect(trimmed, "mean")[0].double()


RULES = {"sum": _sum, "ties": _ties}


def _check(density: float, beta: float, rank: int | None) -> None:
    problems = []
    if not 0 < density <= 1:
        problems.append(f"density must be in (0, 1], got {density} (merge.params.density)")
    if not 0 <= beta <= 1:
        problems.append(f"beta must be in [0, 1], got {beta} (merge.params.beta)")
    if rank is not None and rank < 1:
        problems.append(f"rank must be at least 1, got {rank} (merge.params.rank)")
    if problems:
        raise UserError("\n".join(problems))
