"""Merging of what experts train besides A and B: biases of updates, DoRA magnitudes, values of the base itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustmerge.formats.adapter import Adapter
from robustmerge.formats.tensors import all_finite
from robustmerge.method import AnyMethod
from robustmerge.rules import sum_of


def merge_biases(biases: Sequence[Tensor | None], method: AnyMethod, experts: Sequence[str]) -> Tensor | None:
    """Merge the biases of the updates (lora_bias) [d_out]: by linear methods as B A, by others to the plain mean.

    Linear methods: strength sum_n w_n b_n, divided by T in a mean. Other methods do not say what to do with a bias.
    None stands for zeros, as for an expert that lacks the module; if all are None, so is the result.
    """
    present = [bias for bias in biases if bias is not None]
    if not present:
        return None
    whole = [torch.zeros_like(present[0]) if bias is None else bias for bias in biases]
    shares = method.linear_shares_of(experts)
    return sum_of(whole, shares) if shares else mean_of(whole)


def mean_if_present(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The plain mean; None if the experts have no such tensor."""
    present = [x for x in tensors if x is not None]
    return mean_of(present) if present else None


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The plain mean in float32."""
    return sum_of([x.float() for x in tensors]) / len(tensors)


def mean_extras(adapters: Sequence[Adapter]) -> Iterator[tuple[str, Tensor]]:
    """The plain mean of every trained value of the base, in float32, whatever the method and its strength.

    Published code: the same mean, summed in the tensors' own dtype. Counters and the like are equal and stay.
    """
    for name in adapters[0].extras:
        tensors = [a.extra(name) for a in adapters]
        yield name, mean_of(tensors) if tensors[0].is_floating_point() else tensors[0]


def problems_of_extras(adapters: Sequence[Adapter]) -> Iterator[str]:
    """Problems of trained values of the base that cannot be averaged, and of its frozen ones, which are left out."""
    for name in sorted({name for a in adapters for name in a.frozen}):
        first, *others = [a for a in adapters if name in a.frozen]
        values = first.file.get(first.frozen[name])
        if odd := [a.name for a in others if not _are_alike(values, a.file.get(a.frozen[name]))]:
            yield (
                f"'{name}', a weight of the base that peft saved with the adapters, differs between the experts "
                f"{first.name} and {', '.join(odd)}: they are of different bases, or new rows of resized embeddings "
                "were drawn anew for each; train what was resized whole (modules_to_save)"
            )
    for name in adapters[0].extras:
        tensors = [a.extra(name) for a in adapters]
        if tensors[0].is_floating_point():
            bad = [a.name for a, x in zip(adapters, tensors, strict=True) if not all_finite(x)]
            yield from (f"expert '{expert}', '{name}' holds NaN or infinity" for expert in bad)
        elif any(not torch.equal(tensors[0], x) for x in tensors[1:]):
            yield f"'{name}' differs between the experts and is not a number that can be averaged"


def _are_alike(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal, or of different dtypes and as close as these allow."""
    if x.shape != y.shape or x.dtype == y.dtype:
        return x.shape == y.shape and torch.equal(x, y)
    return torch.allclose(x.float(), y.float(), rtol=2**-7, atol=2**-14)
