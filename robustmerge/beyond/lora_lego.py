"""LoRA-LEGO: the rank-one units of all experts in clusters, each cluster averaged (arXiv 2409.16167, ICLR 2025).

    u = [a, b], a row of A_n and its column of B_n: one of the M = N r units
    u_k = the mean of cluster k, times mean_u max|u| / max|u_k| over its members         k-means, K clusters
    D = strength * sqrt(M / K) * sum_k b_k a_k^T

Low-rank route: a rotation keeps distances, so k-means runs on the M x M coordinates of a QR decomposition of the units.
The result is an adapter of rank K.

What comes out depends on the factors, not only on their product: b a^T is also (c b)(a / c)^T and (-b)(-a)^T, which are
other units. With A much larger than B, as after training, A decides. It also depends on where k-means starts, unless
the clusters lie apart: the best of 10 starts by k-means++, drawn from `seed`, is taken. The units are sorted first, so
that the order of the experts does not matter.

No code of the paper's authors was found. This is its reading in compress-then-merge
(https://github.com/ZhengbaoHe/compress-then-merge). Where that differs: it leaves alpha/r out, draws without a seed, by
scikit-learn, and refuses an empty cluster. The units of an all-zero expert are averaged there with the others, which
shrinks their b, and are left out here. TARA's reading (https://github.com/wooseong97/TARA-Merge) clusters a/|a| and
b/|b| and has sqrt(r / K); it is not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import qr

from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, make_pair
from robustmerge.stage.settings import UserError

STARTS, MOST_ROUNDS = 10, 300


def merge(pairs: Sequence[LoraPair], clusters: int | None = None, seed: int = 0, strength: float = 1.0) -> LoraPair:
    """Merge one module. Ranks may differ; an all-zero expert changes nothing.

    clusters: K, the rank of the result; null for the largest of the experts. seed: of the starts of k-means.
    Raises UserError for a number out of range.
    """
    if clusters is not None and clusters < 1:
        raise UserError(f"clusters must be at least 1, got {clusters} (merge.params.clusters)")
    d_in = pairs[0].A.shape[1]
    units = torch.cat([torch.cat([p.A.double(), p.B.double().T], dim=1) for p in pairs])  # [M, d_in + d_out]
    units = units[units[:, :d_in].any(1) & units[:, d_in:].any(1)]
    units = units[units.sum(1).argsort(stable=True)]
    labels = find_clusters(units, clusters or max(pair.rank for pair in pairs), seed)
    return average_clusters(units, labels, d_in, strength)


def average_clusters(units: Tensor, labels: Tensor, d_in: int, strength: float) -> LoraPair:
    """The update of the clusters' rescaled means. units: [a, b] of each [M, d_in + d_out], labels: [M]."""
    member = (labels[:, None] == labels.unique()).double()  # [M, K]
    shares = member / member.sum(0)
    means = shares.T @ units
    size, wanted = means.abs().amax(1), shares.T @ units.abs().amax(1)
    gain = torch.where(size > CUT * wanted, wanted / size, 0.0)  # 0: the members cancel each other
    a, b = (means * gain[:, None]).split([d_in, units.shape[1] - d_in], dim=1)
    return make_pair(strength * (len(units) / max(1, len(means))) ** 0.5 * b.T, a.T)


def find_clusters(units: Tensor, count: int, seed: int) -> Tensor:
    """The labels [M] of at most `count` clusters by k-means: of several starts the one of least squared distances."""
    if len(units) <= count:
        return torch.arange(len(units), device=units.device)
    points = qr(units.T, mode="r").R.T.cpu()  # [M, M]
    draw = torch.Generator().manual_seed(seed)
    results = [_iterate(points, _draw_starts(points, count, draw)) for _ in range(STARTS)]
    return min(results, key=lambda result: result[0])[1].to(units.device)


def _draw_starts(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """k-means++: each further centre is a point, with a probability as its squared distance from the nearest centre."""
    centres = points[torch.randint(len(points), (1,), generator=draw)]
    smallest = (CUT * points.norm(dim=1).max()) ** 2
    while len(centres) < count:
        squared = _distances(points, centres).amin(1).square()
        if squared.max() <= smallest:  # there are fewer points than that
            break
        centres = torch.cat([centres, points[torch.multinomial(squared, 1, generator=draw)]])
    return centres


def _iterate(points: Tensor, centres: Tensor) -> tuple[float, Tensor]:
    """Lloyd's algorithm: the sum of squared distances from the nearest centre, and the labels."""
    labels = torch.full((len(points),), -1)
    for _ in range(MOST_ROUNDS):
        nearest = _distances(points, centres).min(1)
        if torch.equal(nearest.indices, labels):
            break
        labels = nearest.indices
        member = (labels[:, None] == torch.arange(len(centres))).double()
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, member.T @ points / size, centres)
    return float(nearest.values.square().sum()), labels


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
