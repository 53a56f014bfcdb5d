"""The tables of the findings, and what the experts alone put into them: spectra, norms, cosines, cross terms."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from robustmerge.adapter import Adapter, LoraPair
from robustmerge.method import Method
from robustmerge.retention import Crossed, Inner, compare_B, cross_terms, inner_products
from robustmerge.spectra import Spectrum, compare_A, decompose

Row = dict[str, Any]

PLAIN = Method(name="plain_sum", strength=1.0)  # (sum of B)(sum of A), nothing pruned and nothing scaled


@dataclass(frozen=True)
class Findings:
    """Tables, a mapping a row; all begin with group and seed.

    experts: one an expert. spectra: one an expert and index k, s_k / s_1 as the mean over modules. pairs: one a pair
    of experts. merged: one a merged model (and the multi-task model). kept: one a merged model and expert, with the
    scores on the expert's own task. cross: one a sum of factors, with what its cross terms weigh. grid: one a method
    and factor of its default update, with the mean score on val.
    """

    experts: list[Row] = field(default_factory=list)
    spectra: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    merged: list[Row] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)
    cross: list[Row] = field(default_factory=list)
    grid: list[Row] = field(default_factory=list)


@dataclass
class Sums:
    """What is gathered on the way through the modules."""

    names: list[str]
    inner: Inner | None = None
    crossed: dict[str, Crossed] = field(default_factory=dict)
    spectra: list[list[Spectrum]] = field(default_factory=list)  # of every module
    a_cosines: list[torch.Tensor] = field(default_factory=list)
    b_cosines: list[torch.Tensor] = field(default_factory=list)

    def add(self, pairs: Sequence[LoraPair], merged: Sequence[Any], methods: Mapping[str, Method], module: str) -> None:
        inner = inner_products(pairs, merged)
        self.inner = self.inner.plus(inner) if self.inner else inner
        self.spectra.append([decompose(pair) for pair in pairs])
        self.a_cosines.append(compare_A(pairs))
        self.b_cosines.append(compare_B(pairs))
        for key, method in methods.items():
            crossed = cross_terms(dict(zip(self.names, pairs, strict=True)), method, module)
            self.crossed[key] = self.crossed[key].plus(crossed) if key in self.crossed else crossed


def tell_experts(found: Findings, gathered: Sums, adapters: Sequence[Adapter], about: Row) -> None:
    """The rows of the experts and their pairs."""
    names, norms = gathered.names, gathered.inner.experts.diagonal().sqrt()
    for i, adapter in enumerate(adapters):
        s = [spectra[i].s for spectra in gathered.spectra if len(spectra[i].s)]
        row = about | {"expert": names[i], "rank": max(adapter.ranks.values()), "width": _width(adapter)}
        row |= {"modules": len(gathered.spectra), "extras": len(adapter.extras), "norm": float(norms[i])}
        row |= {"norm_over_mean": float(norms[i] / norms.mean())}
        row |= {"first_over_last": statistics.median([float(x[0] / x[-1]) for x in s] or [float("nan")])}
        stable = [float(x.square().sum() / x[0] ** 2) for x in s]
        found.experts.append(row | {"stable_rank": statistics.median(stable or [0.0])})
        for k in range(max(map(len, s), default=0)):
            values = [float(x[k] / x[0]) for x in s if len(x) > k]
            found.spectra.append(about | {"expert": names[i], "k": k + 1, "relative": statistics.fmean(values)})
    a_cosine, b_cosine = (torch.stack(x).mean(0) for x in (gathered.a_cosines, gathered.b_cosines))
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            cosine = gathered.inner.experts[i, j] / (norms[i] * norms[j])
            row = about | {"one": names[i], "other": names[j], "update_cosine": float(cosine)}
            found.pairs.append(row | {"a_cosine": float(a_cosine[i, j]), "b_cosine": float(b_cosine[i, j])})
    if repr(PLAIN) in gathered.crossed:
        found.cross.append(about | {"method": "plain sums of A and B"} | weights(gathered.crossed[repr(PLAIN)]))


def _width(adapter: Adapter) -> int:
    """The fewest dimensions that an update of it has to lie in."""
    return min(min(d_out, d_in) for d_out, _, d_in in adapter.shapes.values())


def weights(crossed: Crossed) -> Row:
    """What cross terms weigh, as part of a row."""
    return {"weight": crossed.weight, "cosine": crossed.cosine}
