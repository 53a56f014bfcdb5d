"""The kinds of layers that LoRA is put on: how each keeps A and B in a file, and how B A lies in its weight.

Merges know matrices alone, A [r, d_in] and B [d_out, r]; reading and writing translate:

    kind         A in a file             B in a file         weight                      its update
    linear       [r, d_in]               [d_out, r]          [d_out, d_in]               B A
    transposed   [r, d_in]               [d_out, r]          [d_in, d_out]               (B A)^T, by fan_in_fan_out
    embedding    [r, vocabulary]         [d_out, r]          [vocabulary, d_out]         (B A)^T, d_in = vocabulary
    convolution  [r, channels, *kernel]  [d_out, r, 1, ...]  [d_out, channels, *kernel]  B A, d_in = channels * kernel

So A always reads what comes in (the one-hot vector of a token, a patch of an image), and B writes what goes out.
Source: `get_delta_weight` of Linear, Embedding and _ConvNd in peft.tuners.lora.layer, and peft.tuners.lora.dora.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustmerge.formats.names import EMBEDDED, PARTS


@dataclass(frozen=True)
class LayerKind:
    """The kind of layer that a module is. kernel: of a convolution, which has one to three dimensions; else empty."""

    is_embedding: bool = False
    kernel: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kernel:
            return f"convolution of kernel {' x '.join(map(str, self.kernel))}"
        return "embedding" if self.is_embedding else "linear layer"

    def name_in_file(self, part: str) -> str:
        """The name in a file of a part of a module, of PARTS.

        >>> LayerKind().name_in_file("A"), LayerKind(is_embedding=True).name_in_file("A")
        ('lora_A.weight', 'lora_embedding_A')
        """
        return f"{EMBEDDED}{part}" if self.is_embedding and part in ("A", "B") else PARTS[part]

    def shape_in_file(self, part: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in a file of a part that is computed with as A [r, d_in], B [d_out, r] or a vector [d_out].

        >>> conv = LayerKind(kernel=(3, 2))
        >>> conv.shape_in_file("A", (4, 30)), conv.shape_in_file("B", (7, 4)), conv.shape_in_file("magnitude", (7,))
        ((4, 5, 3, 2), (7, 4, 1, 1), (1, 7, 1, 1))
        """
        ones = (1,) * len(self.kernel)
        if part == "A":
            return (shape[0], shape[1] // math.prod(self.kernel), *self.kernel)
        if part == "B":
            return (*shape, *ones)
        return (1, *shape, *ones) if part == "magnitude" and self.kernel else tuple(shape)

    def is_transposed(self, fan_in_fan_out: bool) -> bool:
        """Whether the layer keeps its weight as [d_in, d_out]. fan_in_fan_out: of the config, for linear layers."""
        return self.is_embedding or (fan_in_fan_out and not self.kernel)

    def weight_shape(self, d_out: int, d_in: int, is_transposed: bool) -> tuple[int, ...]:
        """The shape of the layer's weight."""
        return (d_in, d_out) if is_transposed else (d_out, d_in // math.prod(self.kernel), *self.kernel)


LINEAR = LayerKind()


def find_kind(names: Mapping[str, str], A: Sequence[int], B: Sequence[int]) -> LayerKind | None:
    """The kind of layer that two tensors are of; None if they are of none.

    names: part -> name in the file. A, B: their shapes.
    """
    embedded = {f".{EMBEDDED}" in names[part] for part in "AB"}
    if len(embedded) == 1 and len(A) == len(B) == 2:
        return LayerKind(is_embedding=True in embedded)
    if embedded == {False} and len(A) == len(B) in (3, 4, 5) and set(B[2:]) == {1}:
        return LayerKind(kernel=tuple(A[2:]))
    return None
