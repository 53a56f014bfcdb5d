"""Linear algebra of low-rank updates D = B A, exact and without ever forming the dense update [d_out, d_in]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, svd

from robustmerge.formats.adapter import LoraPair

OVERSAMPLED, POWERS = 16, 3  # of a randomised approximation: further directions, and powers that separate them
CUT = 1e-6  # directions below this fraction of the largest singular value are rounding of float32 factors


# --- the update as a pair of factors -----------------------------------------------------------------------------


def concatenate(pairs: Sequence[LoraPair], weights: Sequence[float]) -> LoraPair:
    """sum_n w_n B_n A_n, exactly: A = [A_1; ...; A_N], B = [w_1 B_1 ... w_N B_N], rank the sum of the ranks."""
    A = torch.cat([p.A for p in pairs], dim=0)  # [sum r_n, d_in]
    B = torch.cat([p.B * w for p, w in zip(pairs, weights, strict=True)], dim=1)  # [d_out, sum r_n]
    return LoraPair(A, B)


def make_pair(left: Tensor, right: Tensor) -> LoraPair:
    """The update left @ right^T as a pair in float32; a zero of rank 1 if R is 0. left [d_out, R], right [d_in, R]."""
    if left.shape[1] == 0:
        left, right = left.new_zeros(len(left), 1), right.new_zeros(len(right), 1)
    return LoraPair(right.T.float().contiguous(), left.float().contiguous())


def truncate(update: LoraPair | Tensor, rank: int | None) -> tuple[LoraPair | Tensor, float]:
    """The best approximation of the given rank, by singular values, and ||D - D_r||_F^2, what it leaves out.

    The update is unchanged if its rank is not above that.
    """
    if rank is None or (isinstance(update, LoraPair) and update.rank <= rank):
        return update, 0.0
    if isinstance(update, LoraPair):
        U, s, V = svd_of_pair(update)
    else:
        U, s, Vh = svd(update.double(), full_matrices=False)
        V = Vh.T
    pair = LoraPair(V[:, :rank].T.float().contiguous(), (U[:, :rank] * s[:rank]).float())
    return pair, float(s[rank:].square().sum())


class Approximation(NamedTuple):
    """U diag(s) V^T near a dense D. squared_norm: ||D||_F^2; squared_error: ||D - U diag(s) V^T||_F^2.

    is_best: whether no other of this rank is nearer, which a randomised one need not be.
    """

    U: Tensor
    s: Tensor
    V: Tensor
    squared_norm: float
    squared_error: float
    is_best: bool

    @property
    def pair(self) -> LoraPair:
        """B = U sqrt(s), A = sqrt(s) V^T, in float32."""
        root = self.s.sqrt()
        return make_pair(self.U * root, self.V * root)


def approximate(dense: Tensor, rank: int) -> Approximation:
    """The best approximation of this rank, by the whole decomposition in float64 (Eckart and Young 1936)."""
    is_wide = dense.shape[0] < dense.shape[1]
    Q, R = qr((dense.T if is_wide else dense).double())  # the SVD of the small R is several times faster
    left, s, right = svd(R)
    U, V = Q @ left[:, :rank], right[:rank].T
    U, V = (V, U) if is_wide else (U, V)
    return Approximation(U, s[:rank], V, float(s.square().sum()), float(s[rank:].square().sum()), True)


def approximate_randomly(dense: Tensor, rank: int, draw: torch.Generator) -> Approximation:
    """An approximation of this rank close to the best, in a few products with `dense`, in float32.

    Q [d_out, k], k = rank + OVERSAMPLED, spans what (D D^T)^POWERS D makes of random vectors (Halko, Martinsson and
    Tropp 2011, algorithm 4.4, https://arxiv.org/abs/0909.4061); the SVD of Q^T D [k, d_in] gives the directions. The
    error is stated from ||D||^2 = ||Q Q^T D||^2 + ||D - Q Q^T D||^2, so it is that of this approximation.
    """
    dense = dense.float()
    size = min(rank + OVERSAMPLED, *dense.shape)
    Q = qr(dense @ torch.randn(dense.shape[1], size, generator=draw).to(dense.device)).Q
    for _ in range(POWERS):
        Q = qr(dense @ qr(dense.T @ Q).Q).Q
    u, s, Vh = svd((Q.T @ dense).double(), full_matrices=False)
    U, s, V = (Q.double() @ u)[:, :rank], s[:rank], Vh[:rank].T
    squared = float(torch.linalg.vector_norm(dense, dtype=torch.float64)) ** 2
    return Approximation(U, s, V, squared, max(0.0, squared - float(s.square().sum())), False)


# --- singular directions of updates ------------------------------------------------------------------------------


def svd_of_pair(pair: LoraPair) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, k], s [k], V [d_in, k] in float64 of B A = U diag(s) V^T, k = min(r, d_out, d_in); never dense.

    B = Q_B R_B, A^T = Q_A R_A and R_B R_A^T = U' diag(s) V'^T give U = Q_B U', V = Q_A V'.
    """
    left, core_left = qr(pair.B.double())  # [d_out, p], [p, r]
    right, core_right = qr(pair.A.double().T)  # [d_in, q], [q, r]
    u, s, vh = svd(core_left @ core_right.T, full_matrices=False)
    return left @ u, s, right @ vh.T


@dataclass(frozen=True)
class Spectrum:
    """D = U diag(s) V^T in float64. U: [d_out, k], s: [k], falling, V: [d_in, k]; k: the directions D really has."""

    U: Tensor
    s: Tensor
    V: Tensor

    @property
    def norm(self) -> float:
        """||D||_F."""
        return float(self.s.norm())


def decompose(pair: LoraPair) -> Spectrum:
    """The singular value decomposition of B A. Directions that are only rounding are left out: k <= rank.

    >>> decompose(LoraPair(A=torch.tensor([[0.0, 3.0]]), B=torch.tensor([[0.0], [2.0]]))).s
    tensor([6.], dtype=torch.float64)
    """
    U, s, V = svd_of_pair(pair)
    kept = s > CUT * s[0]  # nothing at all where s[0] is 0
    return Spectrum(U[:, kept], s[kept], V[:, kept])


def decompose_sum(pairs: Sequence[LoraPair], weights: Sequence[float] | None = None) -> Spectrum:
    """The singular value decomposition of sum_n w_n B_n A_n, by concatenated factors; ranks may differ."""
    return decompose(concatenate(pairs, [1.0] * len(pairs) if weights is None else weights))


def decompose_leading(pair: LoraPair, rank: int | None) -> Spectrum:
    """The first `rank` singular directions of B A, or all if it is None; none at all of a zero update."""
    spectrum = decompose(pair)
    return Spectrum(spectrum.U[:, :rank], spectrum.s[:rank], spectrum.V[:, :rank])


def stack_spectra(spectra: Sequence[Spectrum]) -> Spectrum:
    """All experts' directions: U [d_out, R], s [R], V [d_in, R] with R the sum of the ranks."""
    return Spectrum(*(torch.cat([getattr(x, part) for x in spectra], dim=-1) for part in ("U", "s", "V")))


def singular_values(pair: LoraPair) -> Tensor:
    """All min(r, d_out, d_in) singular values of B A, falling, rounding included; cheaper than `decompose`."""
    core_left = qr(pair.B.double(), mode="r").R
    core_right = qr(pair.A.double().T, mode="r").R
    return torch.linalg.svdvals(core_left @ core_right.T)


# --- orthonormal bases of columns --------------------------------------------------------------------------------


def orthonormal_basis(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span of the columns. columns [d, k] -> [d, p], p <= min(d, k)."""
    left, _ = _directions(columns)
    return left


def polar(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns: P Q^T of columns = P diag(s) Q^T. columns [d, k] -> [d, k].

    Where the columns depend on each other it is the partial isometry on their span, to which published codes add an
    arbitrary completion.
    """
    left, right = _directions(columns)
    return left @ right


def _directions(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Left [d, p] and right [p, k] singular vectors of columns [d, k], through a QR decomposition."""
    Q, R = qr(columns)
    left, s, right = svd(R, full_matrices=False)
    kept = s > CUT * (s[0] if len(s) else 1.0)
    return Q @ left[:, kept], right[kept]


# --- what a spectrum says, and how updates lie to one another ----------------------------------------------------


def energy_of_first(s: Tensor) -> float:
    """s_1^2 / sum_k s_k^2; 0 for a zero update."""
    return float(s[0] ** 2 / s.square().sum()) if len(s) and s[0] > 0 else 0.0


def effective_rank(s: Tensor) -> float:
    """exp(-sum p_k log p_k), p = s / sum s (Roy and Vetterli 2007): n equal values give n; 0 for a zero update."""
    if not len(s) or s[0] == 0:
        return 0.0
    p = s[s > 0] / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


class Pairwise(NamedTuple):
    """Pairwise similarity of N updates, each [N, N].

    inner: <D_i, D_j>. columns: ||U_i^T U_j||_F^2 / min(k_i, k_j), 1 if one column space holds the other, 0 if they are
    orthogonal. rows: the same of V. Two random subspaces of R^d give about max(k_i, k_j) / d.
    """

    inner: Tensor
    columns: Tensor
    rows: Tensor


def compare(spectra: Sequence[Spectrum]) -> Pairwise:
    """Compare all pairs at once, by the blocks of U^T U and V^T V of the concatenated bases."""
    ranks = torch.tensor([len(x.s) for x in spectra], device=spectra[0].s.device)
    s, U, V = (torch.cat([getattr(x, part) for x in spectra], dim=-1) for part in ("s", "U", "V"))
    left, right = U.T @ U, V.T @ V  # [K, K], K = sum of the k
    member = torch.eye(len(spectra), dtype=s.dtype, device=s.device).repeat_interleave(ranks, dim=1)  # [N, K]

    def add_up_blocks(x: Tensor) -> Tensor:
        return member @ x @ member.T

    smaller = torch.minimum(ranks[:, None], ranks[None, :]).clamp(min=1)
    return Pairwise(
        inner=add_up_blocks(left * right * s[:, None] * s[None, :]),
        columns=add_up_blocks(left.square()) / smaller,
        rows=add_up_blocks(right.square()) / smaller,
    )


def compare_A(pairs: Sequence[LoraPair]) -> Tensor:
    """Cosines of A: <A_i, A_j> / (||A_i|| ||A_j||), [N, N]; near 1 if both began with the same A; 0 for a zero A.

    Where ranks differ, over the rows that both have.
    """
    flat = [pair.A.flatten().double() for pair in pairs]  # row by row: the first entries are the first rows
    cosines = torch.eye(len(pairs), dtype=torch.float64)
    for i, x in enumerate(flat):
        for j, y in enumerate(flat[:i]):
            n = min(len(x), len(y))
            length = x[:n].norm() * y[:n].norm()
            cosines[i, j] = cosines[j, i] = x[:n] @ y[:n] / length if length > 0 else 0.0
    return cosines
