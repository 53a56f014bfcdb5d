"""Direction robustness: what a merge leaves of the singular directions of an expert (figures 3 and 7 of the paper).

The formulas are our reading of these figures (https://arxiv.org/abs/2502.17159): they fix what is compared with what.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import LoraPair
from robustmerge.low_rank import CUT, Spectrum, singular_values
from robustmerge.method import Method
from robustmerge.method_parts import Prune, Scale


@dataclass(frozen=True)
class Robustness:
    """Of each singular direction k of an expert's update D in the merged update D', all [k].

    similarity: (u_k . u'_j)(v_k . v'_j) with the merged direction j nearest to it, in [-1, 1]; 1: the direction is
    still there, negative: it was turned round. kept: u_k^T D' v_k / s_k, how much of it D' as a whole contains.
    ratio: s'_k / s_k, the spectra place by place; s'_k is 0 where D' has fewer directions.
    """

    similarity: Tensor
    kept: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Pruning:
    """The singular values of an expert's update as trained, pruned, and pruned with B scaled, all [k] (figure 3a).

    pruned_ratio, scaled_ratio: those after over those before, place by place (figure 3b); NaN where the update has no
    k-th direction.
    """

    trained: Tensor
    pruned: Tensor
    scaled: Tensor

    @property
    def pruned_ratio(self) -> Tensor:
        return torch.where(self.trained > 0, self.pruned / self.trained, torch.nan)

    @property
    def scaled_ratio(self) -> Tensor:
        return torch.where(self.trained > 0, self.scaled / self.trained, torch.nan)


def compare_directions(expert: Spectrum, merged: Spectrum) -> Robustness:
    """An expert's directions in the merged update (figure 7). A merged update of zero keeps nothing: all 0."""
    lengths = torch.zeros_like(expert.s)
    n = min(len(expert.s), len(merged.s))
    lengths[:n] = merged.s[:n]
    if not n:
        return Robustness(lengths, lengths, lengths)
    match = (expert.U.T @ merged.U) * (expert.V.T @ merged.V)  # [k, k'], <u_k v_k^T, u'_j v'_j^T>
    similarity = match.gather(1, match.abs().argmax(1, keepdim=True))[:, 0]
    return Robustness(similarity, match @ merged.s / expert.s, lengths / expert.s)


def prune_pair(pair: LoraPair, density: float, scaled: bool = False) -> LoraPair:
    """A and B pruned by magnitude (equation 2); scaled: B also multiplied by what pruning took from A (equation 3).

    What RobustMerge does to one expert before experts are normalised and summed (figure 3).
    """
    method = Method(
        name="pruned",
        strength=1.0,
        prune=Prune(rule="magnitude", density=density),
        scale=Scale(B="A" if scaled else None, empty_row="drop"),
    )
    return merge_pairs({"expert": pair}, method)


def compare_pruning(pair: LoraPair, spectrum: Spectrum, density: float) -> Pruning:
    """The spectrum of an expert's update before and after pruning (figures 3a and 3b). spectrum: of the pair.

    Values that are only rounding are 0.

    >>> from robustmerge.low_rank import decompose
    >>> pair = LoraPair(A=torch.tensor([[1.0, 2.0, 2.0]]), B=torch.tensor([[0.0], [3.0]]))
    >>> compare_pruning(pair, decompose(pair), density=0.3).pruned_ratio  # without the 1: sqrt(8) / 3
    tensor([0.9428], dtype=torch.float64)
    """
    after = [singular_values(prune_pair(pair, density, scaled=x)) for x in (False, True)]
    pruned, scaled = (values * (values > CUT * values[0]) for values in after)
    trained = torch.zeros_like(pruned)
    trained[: len(spectrum.s)] = spectrum.s
    return Pruning(trained, pruned, scaled)
