"""Steps that go with any rule, each with `none` as its default, which changes no byte.

Before the rule, on the experts: `equalize` changes their norms, `calibrate` what their B share. After it, on the merged
update: `spectrum` changes its singular values. All are exact in low rank: no dense update is formed unless the rule
returns one. N is the number of experts that have the module; an expert of zeros counts, as with each step's authors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import svd

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, Spectrum, decompose, make_pair
from robustmerge.method import AnyMethod
from robustmerge.method_parts import Calibrate, Equalize, ReshapeSpectrum
from robustmerge.module import Module, squared_norm
from robustmerge.stage.settings import UserError

FLAT = 1e-4  # neighbouring singular values of a smaller relative distance are equal

Gains = Callable[[Spectrum, Sequence[LoraPair], ReshapeSpectrum, float], Tensor]


def prepare(module: Module, method: AnyMethod) -> Module:
    """The experts of a module as the method's rule gets them."""
    return calibrate(equalize(module, method.equalize), method.calibrate)


def finish(update: LoraPair | Tensor, experts: Module, method: AnyMethod) -> LoraPair | Tensor:
    """What the method makes of the update that its rule returns. experts: equalized, not calibrated."""
    restores = method.calibrate.rule != "none" and method.calibrate.norm == "merge"
    if not restores and method.spectrum.rule == "none":
        return update
    strength = 1.0 if method.effective_strength is None else method.effective_strength
    weights = [(method.weights or {}).get(name, 1.0) for name in experts.experts if name not in experts.absent]
    pairs = multiply_each(experts.present, torch.tensor(weights)) if set(weights) != {1.0} else experts.present
    if restores:
        update = restore_norm(update, pairs, strength)
    if method.spectrum.rule != "none":
        share = strength / (len(experts.experts) if method.combine == "mean" else 1)
        update = reshape_spectrum(update, pairs, method.spectrum, share)
    return update


def norms_of(pairs: Sequence[LoraPair]) -> Tensor:
    """||D_n||_F of the experts, [N] in float64; they are finite."""
    return torch.tensor([squared_norm(pair) for pair in pairs], dtype=torch.float64).clamp(min=0).sqrt()


def multiply_each(pairs: Sequence[LoraPair], gains: Tensor) -> list[LoraPair]:
    """Each expert's B times its gain, [N]."""
    return [LoraPair(pair.A, pair.B * float(gain)) for pair, gain in zip(pairs, gains, strict=True)]


# --- before the rule ---------------------------------------------------------------------------------------------


def equalize(module: Module, step: Equalize) -> Module:
    """Make the norms n_i = ||D_i|| of the experts more equal; med and MAD are over those that are not zero.

    norm: D_i (med / n_i)^gamma (as FroM, https://arxiv.org/abs/2506.02478, for gamma = 1).
    cap:  D_i min(1, (med + deviations * MAD) / n_i), MAD = med |n_i - med|.
    """
    if step.rule == "none":
        return module
    norms = norms_of(module.pairs)
    trained = norms[norms > 0]
    if not len(trained):
        return module
    middle = trained.quantile(0.5)
    if step.rule == "norm":
        gains = (middle / norms) ** step.gamma
    else:
        gains = ((middle + step.deviations * (trained - middle).abs().quantile(0.5)) / norms).clamp(max=1)
    return module._replace(pairs=multiply_each(module.pairs, torch.where(norms > 0, gains, 1.0)))


def calibrate(module: Module, step: Calibrate) -> Module:
    """Shrink the directions of the output that the experts' B share (Pico, https://arxiv.org/abs/2604.16826).

    With [B_1 ... B_N] = U diag(s) V^T, c_j = s_j^2 / sum s^2 and a_j = 1 / (1 + (N - 1) c_j):
    B~_i = B_i + U diag(a - 1) U^T B_i = (I + (N - 1) G / tr G)^-1 B_i, G = sum_j B_j B_j^T, solved here with the R x R
    Gram matrix of the stacked B, R the sum of the ranks.
    Published code: B is without alpha/r, which ours includes; that is the same where all experts share it.
    """
    if step.rule == "none":
        return module
    B = torch.cat([pair.B.double() for pair in module.pairs], dim=1)  # [d_out, R]
    gram = B.T @ B
    if not gram.trace() > 0:
        return module
    shared = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    shared += (len(module.present) - 1) * gram / gram.trace()
    parts = torch.linalg.solve(shared, B.T).T.float().split(module.ranks, dim=1)
    pairs = [LoraPair(pair.A, part.contiguous()) for pair, part in zip(module.pairs, parts, strict=True)]
    if step.norm == "experts":
        before, after = norms_of(module.pairs), norms_of(pairs)
        pairs = multiply_each(pairs, torch.where(after > 0, before / after, 1.0))
    return module._replace(pairs=pairs)


# --- after the rule ----------------------------------------------------------------------------------------------


def restore_norm(update: LoraPair | Tensor, pairs: Sequence[LoraPair], strength: float) -> LoraPair | Tensor:
    """Give the update a norm of strength times the experts' mean norm, as Pico's authors do. pairs: with weights."""
    norms, norm = norms_of(pairs), _norm(update)
    if norm <= CUT * abs(strength) * float(norms.sum()):  # what cancels leaves rounding
        return update
    gain = abs(strength) * float(norms.mean()) / norm
    return LoraPair(update.A, update.B * gain) if isinstance(update, LoraPair) else update * gain


def _norm(update: LoraPair | Tensor) -> float:
    """||D||_F, in float64 since the terms of a pair may cancel."""
    if isinstance(update, Tensor):
        return float(torch.linalg.vector_norm(update, dtype=torch.float64))
    A, B = update.A.double(), update.B.double()
    return max(0.0, float(((B.T @ B) * (A @ A.T)).sum())) ** 0.5


def reshape_spectrum(
    update: LoraPair | Tensor, pairs: Sequence[LoraPair], step: ReshapeSpectrum, strength: float
) -> LoraPair | Tensor:
    """Give the update D = U diag(s) V^T other singular values, on the directions that it has.

    pairs: of the experts, with their weights. strength: the factor of their sum that is already in D, in a mean
    divided by their number. It stays in the result.
    """
    if isinstance(update, LoraPair):
        spectrum = decompose(update)
    else:
        U, s, Vh = svd(update.double(), full_matrices=False)
        kept = s > CUT * s[0]
        spectrum = Spectrum(U[:, kept], s[kept], Vh[kept].T)
    left = spectrum.U * SPECTRUM[step.rule](spectrum, pairs, step, strength)
    return make_pair(left, spectrum.V) if isinstance(update, LoraPair) else (left @ spectrum.V.T).float()


def calibrate_singular_values(
    spectrum: Spectrum, pairs: Sequence[LoraPair], step: ReshapeSpectrum, strength: float
) -> Tensor:
    """Undo what is counted several times (SVC, https://arxiv.org/abs/2602.05536): g_k s_k.

    g_k = N / sum_i max(alpha, c_ik), c_ik = <u_k^T D', u_k^T D_i> / |u_k^T D_i|^2, D' = D / strength. An expert without
    the direction has c = 0. Published code: D' is D, so that alpha is relative to the strength before, which cancels
    wherever alpha does not bind; alpha = 1/N after a strength of 0.3 is alpha = 1/(0.3 N) here.
    Raises UserError if most singular values equal the next one, as Iso-C makes them: the directions u_k are arbitrary.
    """
    equal = spectrum.s[1:] > (1 - FLAT) * spectrum.s[:-1]
    if 2 * int(equal.sum()) > len(equal):
        raise UserError(
            "svc goes by the singular vectors of the merged update, which are arbitrary here, since the rule has made "
            "singular values equal; take another rule, or merge.spectrum.rule=none"
        )
    alpha = 1 / len(pairs) if step.alpha is None else step.alpha
    counted = torch.zeros_like(spectrum.s)
    for pair, norm in zip(pairs, norms_of(pairs), strict=True):
        A, left = pair.A.double(), spectrum.U.T @ pair.B.double()  # [r, d_in], [R, r]
        squared = ((left @ (A @ A.T)) * left).sum(1)
        inner = spectrum.s * (left * (A @ spectrum.V).T).sum(1) / strength
        counted += torch.where(squared > (CUT * float(norm)) ** 2, inner / squared, 0.0).clamp(min=alpha)
    return spectrum.s * len(pairs) / counted


def boost(spectrum: Spectrum, pairs: Sequence[LoraPair], step: ReshapeSpectrum, strength: float) -> Tensor:
    """Raise the small singular values (Subspace Boosting, https://arxiv.org/abs/2506.16506): max(s_j, s_k).

    k: the first index at which s_1 + ... + s_k reaches the share beta of the whole. Published code: raises the zeros of
    the null space as well, whose directions are arbitrary. Among R directions s_1 alone reaches any beta up to 1/R, so
    that the authors' 0.01 makes all values equal in a merge of rank 100 or less.
    """
    s = spectrum.s
    if not len(s):
        return s
    k = int((s.cumsum(0) / s.sum() < step.beta).sum())
    return s.clamp(min=float(s[min(k, len(s) - 1)]))


def raise_to_power(spectrum: Spectrum, pairs: Sequence[LoraPair], step: ReshapeSpectrum, strength: float) -> Tensor:
    """s^p, the norm of the update kept: p < 1 makes the values more equal, 0 all equal."""
    if not len(spectrum.s):
        return spectrum.s
    powers = (spectrum.s / spectrum.s[0]) ** step.power
    return powers * spectrum.s.norm() / powers.norm()


SPECTRUM: dict[str, Gains] = {"svc": calibrate_singular_values, "boost": boost, "power": raise_to_power}
