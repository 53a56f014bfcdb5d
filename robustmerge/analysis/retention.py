"""Retention: what a merged update keeps of each expert, with all modules of a model as one long vector.

D: the merged update, D_n: that of expert n. From inner products alone, of low-rank factors wherever there are any:

    share_n        <D, D_n> / <D_n, D_n>                      how much of the expert is left; 1: all of it
    interference_n ||D - share_n D_n|| / ||share_n D_n||      what is not the expert's, over what is
    distance_n     ||D - D_n|| / ||D_n||                      0: the expert itself; 1: as far as the base is
    outside        ||D - its projection on all D_n|| / ||D||  what is no weighted sum of the experts' updates
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor

from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import Adapter, LoraPair, open_adapter
from robustmerge.formats.adapter_config import DELTA_CONFIG
from robustmerge.formats.delta import open_delta
from robustmerge.low_rank import compare_A, concatenate
from robustmerge.method import Method, has_step_after_rule
from robustmerge.method_parts import Out

Update: TypeAlias = LoraPair | Tensor  # of one module; a tensor is dense [d_out, d_in]


class InnerProducts(NamedTuple):
    """Inner products of one module, or summed over modules. experts: [N, N]; merged: [M, N]; squares: [M]."""

    experts: Tensor
    merged: Tensor
    squares: Tensor

    def plus(self, other: InnerProducts) -> InnerProducts:
        return InnerProducts(*(one + more for one, more in zip(self, other, strict=True)))


class Retention(NamedTuple):
    """Retention of one merged update. share, interference, distance: [N], by expert; norm: ||D||; outside: in 0..1."""

    share: Tensor
    interference: Tensor
    distance: Tensor
    norm: float
    outside: float


class CrossTerms(NamedTuple):
    """Cross terms of (sum of B)(sum of A): squared norms and products, of one module or summed over modules.

    terms: of the cross terms B_n A_m, n != m; own: of the experts' own B_n A_n; between: of the two.
    """

    terms: float
    own: float
    between: float

    def plus(self, other: CrossTerms) -> CrossTerms:
        return CrossTerms(*(one + more for one, more in zip(self, other, strict=True)))

    @property
    def weight(self) -> float:
        """||sum_{n != m} B_n A_m|| / ||sum_n B_n A_n||."""
        return (max(self.terms, 0.0) / self.own) ** 0.5 if self.own > 0 else float("nan")

    @property
    def cosine(self) -> float:
        """Cosine between the cross terms and the sum of the experts' own terms: 1 if they only lengthen it."""
        lengths = (max(self.terms, 0.0) * self.own) ** 0.5
        return self.between / lengths if lengths > 0 else float("nan")


def inner_product(one: Update, other: Update) -> float:
    """<D, D'>, the sum of the products of all entries: sum((B^T B') * (A A'^T)) of two pairs, never dense.

    >>> inner_product(LoraPair(A=torch.tensor([[1.0, 2.0]]), B=torch.tensor([[3.0]])), torch.tensor([[1.0, 1.0]]))
    9.0
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return float((one.double() * other.double()).sum())
    if isinstance(one, Tensor):
        one, other = other, one
    if isinstance(other, Tensor):
        return float(((one.B.double().T @ other.double()) * one.A.double()).sum())
    return float(((one.B.double().T @ other.B.double()) * (one.A.double() @ other.A.double().T)).sum())


def inner_products(experts: Sequence[Update], merged: Sequence[Update]) -> InnerProducts:
    """The inner products of one module that `measure_retention` needs, in float64."""

    def products(ones: Sequence[Update], others: Sequence[Update]) -> Tensor:
        values = [inner_product(one, other) for one in ones for other in others]
        return torch.tensor(values, dtype=torch.float64).reshape(len(ones), len(others))

    squares = torch.tensor([inner_product(x, x) for x in merged], dtype=torch.float64)
    return InnerProducts(products(experts, experts), products(merged, experts), squares)


def measure_retention(inner: InnerProducts) -> list[Retention]:
    """The retention of every merged update; NaN for an expert of zeros, infinite interference where nothing is left."""
    lengths = inner.experts.diagonal().clamp(min=0)  # [N], squared
    inverse = torch.linalg.pinv(inner.experts, hermitian=True)
    kept = []
    for row, square in zip(inner.merged, inner.squares.clamp(min=0), strict=True):
        share = row / lengths
        expert_part = share.square() * lengths
        distance = (square - 2 * row + lengths).clamp(min=0) / lengths
        outside = (1 - row @ inverse @ row / square).clamp(0, 1) if square > 0 else square
        interference = ((square - expert_part).clamp(min=0) / expert_part).sqrt()
        kept.append(Retention(share, interference, distance.sqrt(), float(square.sqrt()), float(outside.sqrt())))
    return kept


def open_update(folder: Path, name: str, like: Adapter) -> Callable[[str], Update]:
    """Open an adapter or delta folder; returns a function module -> update. Raises UserError if it is neither.

    like: an expert of the merge, which knows the layers that keep their weight transposed.
    """
    if not (folder / DELTA_CONFIG).is_file():
        return open_adapter(folder, name).pair
    delta = open_delta(folder)

    def read(module: str) -> Tensor:
        weight = delta.file.get(f"add.{module}.weight").float().flatten(1)
        return weight.T if like.is_transposed(module) else weight

    return read


def compare_B(pairs: Sequence[LoraPair]) -> Tensor:
    """Cosines of B: <B_i, B_j> / (||B_i|| ||B_j||) for all pairs [N, N]; see `compare_A`."""
    return compare_A([LoraPair(pair.B.T, pair.A.T) for pair in pairs])


def has_cross_terms(method: object) -> TypeGuard[Method]:
    """Whether a method sums A and B apart, so that B_n A_m with n != m occurs, and these terms can be measured.

    They cannot be measured where signs are elected, as there is no sum of own terms to compare with; where strength or
    weights differ by module, as that takes the whole model; nor with a step after the rule, which does not go term by
    term.
    """
    return (
        isinstance(method, Method)
        and (method.strength_key, method.combine) == ("factors", "sum")
        and not method.needs_whole_model
        and not method.is_graded
        and not has_step_after_rule(method)
    )


def cross_terms(experts: dict[str, LoraPair], method: Method, module: str) -> CrossTerms:
    """Measure the cross terms of one module, after the method's pruning and scaling."""
    plain = replace(method, strength=1.0, out=Out())
    whole, own = (merge_pairs(experts, replace(plain, product=x), module) for x in ("of_sums", "each"))
    terms = concatenate([whole, own], [1.0, -1.0])
    return CrossTerms(inner_product(terms, terms), inner_product(own, own), inner_product(terms, own))
