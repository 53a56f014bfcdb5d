"""Singular values layer by layer, of experts, of their plain sum and of merged updates (figure 8 of the paper).

The paper (https://arxiv.org/abs/2502.17159) shows the value projection in layers 1, 18 and 32 of 32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from robustmerge.formats.adapter import LoraPair
from robustmerge.formats.names import find_layer
from robustmerge.low_rank import Spectrum, decompose_sum
from robustmerge.stage.settings import UserError, suggest

VALUE_KINDS = ("v_proj", "v", "value", "to_v", "v_lin")  # how models call their value projection
SUM = "sum of the experts"


def module_kind(module: str) -> str:
    """The kind of a module: `q_proj` for `model.layers.3.self_attn.q_proj`."""
    return module.rpartition(".")[2]


def choose_layers(modules: Collection[str], kind: str | None = None) -> dict[str, int]:
    """The modules of a kind in the first, the middle and the last layer: module -> layer, counted from 1.

    kind: the value projection unless it is given; empty where there is none. Where there are several stacks of layers,
    as of a vision tower and a language model, the one with most such layers is taken. Raises UserError if no module
    of `kind` is in a layer.

    >>> choose_layers([f"layers.{i}.{x}_proj" for i in range(32) for x in "qv"])
    {'layers.0.v_proj': 1, 'layers.16.v_proj': 17, 'layers.31.v_proj': 32}
    """
    by_kind: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for module in sorted(modules, reverse=True):  # of several of a kind in a layer the first by name
        if layer := find_layer(module):
            by_kind[module_kind(module)][layer[0]][layer[1]] = module
    if kind is not None and kind not in by_kind:
        raise UserError(f"no layer that all adapters share has a module of the kind '{kind}'; {suggest(kind, by_kind)}")
    chosen = kind or next((name for name in VALUE_KINDS if name in by_kind), None)
    if chosen is None:
        return {}
    layers = max((by_kind[chosen][stack] for stack in sorted(by_kind[chosen])), key=len)
    numbers = sorted(layers)
    return {layers[n]: n + 1 for n in (numbers[0], numbers[len(numbers) // 2], numbers[-1])}


def measure_layer(
    pairs: Mapping[str, LoraPair], spectra: Sequence[Spectrum], merged: Mapping[str, Spectrum]
) -> list[dict[str, Any]]:
    """The singular values of one module: of each expert, of the sum of all, of each merged update.

    role: expert, sum or merged. k: the index. value: the k-th singular value; directions that are only rounding have no
    row. The sum, our reading of the paper's "original", is that of the updates B A, each with factor 1; its rank is up
    to the sum of the ranks.

    >>> import torch
    >>> from robustmerge.low_rank import decompose
    >>> one = LoraPair(A=torch.tensor([[0.0, 3.0]]), B=torch.tensor([[0.0], [2.0]]))
    >>> [row["value"] for row in measure_layer({"one": one, "same": one}, [decompose(one)] * 2, {})]
    [6.0, 6.0, 12.0]
    """
    curves = [("expert", name, spectrum) for name, spectrum in zip(pairs, spectra, strict=True)]
    curves.append(("sum", SUM, decompose_sum(list(pairs.values()))))
    curves += [("merged", name, spectrum) for name, spectrum in merged.items()]
    return [
        {"role": role, "name": name, "k": k, "value": float(value)}
        for role, name, spectrum in curves
        for k, value in enumerate(spectrum.s, start=1)
    ]
