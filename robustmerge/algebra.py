"""Modules of T experts through a merge method. Every method of the paper is these few lines.

In a notebook:

>>> import torch
>>> from robustmerge.formats.adapter import LoraPair
>>> from robustmerge.method import Method, Prune
>>> cat = LoraPair(A=torch.tensor([[1.0, 2.0]]), B=torch.tensor([[3.0], [0.0]]))
>>> dog = LoraPair(A=torch.tensor([[0.0, 1.0]]), B=torch.tensor([[0.0], [1.0]]))
>>> halves = Method(name="average", space="delta", combine="mean", strength=1.0)
>>> merge_pairs({"cat": cat, "dog": dog}, halves).delta()
tensor([[1.5000, 3.0000],
        [0.0000, 0.5000]])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.formats.tensors import all_finite
from robustmerge.function_method import collect, merge_outside
from robustmerge.low_rank import concatenate, truncate
from robustmerge.method import Method, OutsideMethod, Prune
from robustmerge.module import EmptyRowsError, Merged, Module, check_alike, check_module, find_empty_rows
from robustmerge.rules import COMBINE, RANK_AXIS, Election, Known, rank_scales, rank_sums
from robustmerge.spaces import SPACES, Blocks
from robustmerge.stage.settings import UserError
from robustmerge.thresholds import measure, pruned_blocks, weigh


def merge_pairs(experts: Mapping[str, LoraPair], method: Method | OutsideMethod, module: str = "") -> LoraPair | Tensor:
    """Merge one module. experts: name -> pair, A [r, d_in] and B [d_out, r]; module: its name, for random pruning.

    Returns a pair, or the dense update [d_out, d_in] where it has no low rank. Raises UserError as `merge_models` does.
    """
    return merge_models({name: {module: pair} for name, pair in experts.items()}, method)[module]


def merge_models(
    experts: Mapping[str, Mapping[str, LoraPair]], method: Method | OutsideMethod
) -> dict[str, LoraPair | Tensor]:
    """Merge whole models that are in memory. experts: name -> module -> pair; returns module -> update.

    Raises UserError if the experts do not fit together, where a scale is undefined, and if a value given or merged is
    not finite.
    """
    names = sorted(experts)
    check_alike(experts, method)
    modules = [
        check_module(Module(name, names, [experts[expert][name] for expert in names], method))
        for name in sorted(experts[names[0]])
    ]
    if isinstance(method, Method):
        merged = _merge_modules(modules, method)
    else:
        told = collect(method, ((module.name, module.pairs) for module in modules))
        merged = [merge_outside(module, told) for module in modules]
    updates = {module.name: found.update for module, found in zip(modules, merged, strict=True)}
    for name, update in updates.items():
        if not all(map(all_finite, (update.A, update.B) if isinstance(update, LoraPair) else (update,))):
            raise UserError(f"module '{name}': the merged update is too large for float32")
    return updates


def _merge_modules(modules: Sequence[Module], method: Method) -> list[Merged]:
    """Merge all modules of a model by a method of the algebra."""
    known = Known()
    if method.looks_at_whole_model:
        names = modules[0].experts
        known = measure(method, names, lambda add: [add(*part) for module in modules for part in parts_of(module)])
    merged = [merge_module(module, known) for module in modules]
    if needs_another_majority(known, [found.election for found in merged]):
        merged = [merge_module(module, replace(known, majority=-1)) for module in modules]
    return merged


def parts_of(module: Module) -> list[tuple[str, str, Blocks]]:
    """(module, part, blocks) of the module's coordinates in the space of the method."""
    coded = SPACES[module.method.space](module.pairs, module.method)
    return [(module.name, part, blocks) for part, blocks in coded.parts.items()]


def needs_another_majority(known: Known, elections: Sequence[Election]) -> bool:
    """Whether a merge assumed that positive signs are the majority, which decided something, and they are not."""
    undecided = any(election.undecided for election in elections)
    return known.majority == 1 and undecided and sum(election.signs for election in elections) <= 0


def merge_module(module: Module, known: Known) -> Merged:
    """Merge one module, in float32 and without NaN (`check_module`).

    known: what was measured over the whole model, if the method looks at it.

    In factor space RobustMerge is A = lambda sum_n A~_n, B = lambda sum_n B~_n diag(S~_n) (released code), and with
    product=each D = lambda sum_n B~_n diag(S~_n) A~_n (equation 5). In the other spaces every block of coordinates is
    pruned and combined by itself.
    """
    method, pairs = module.method, module.pairs
    if method.is_sum_of_updates:  # the same in each such space: keep its low rank
        return Merged(truncate(concatenate(pairs, _shares(module)), module.rank))
    coded = SPACES[method.space](pairs, method)
    parts, dropped = coded.parts, 0
    if method.space == "factors":
        scaled, dropped = _prune_and_scale(module, known)
        if method.product == "each":
            products = [LoraPair(A, B) for A, B in zip(scaled["A"], scaled["B"], strict=True)]
            return Merged(truncate(concatenate(products, _shares(module)), module.rank), dropped)
        method = replace(method, first=None, prune=Prune(scope=method.prune.scope))  # done
        parts = {"A": [lambda: scaled["A"]], "B": [lambda: scaled["B"]]}
    merged, elections = {}, []
    for part, blocks in parts.items():
        merged[part], election = _merge_part(module._replace(method=method), part, blocks, known)
        elections.append(election)
    return Merged(truncate(coded.decode(merged), module.rank), dropped, Election.of(elections))


def _merge_part(module: Module, part: str, blocks: Blocks, known: Known) -> tuple[Tensor, Election]:
    """strength * combine(prune(x_1), ..., prune(x_T)) of one part, block by block."""
    method = module.method
    of_tensor = method.prune.scope == "tensor"
    if of_tensor and (len(blocks) > 1 or method.combine == "balanced"):
        known = measure(method, module.experts, lambda add: add(module.name, part, blocks))

    def merge_blocks(known: Known) -> tuple[Tensor, Election]:
        merged, elections = [], []
        for xs in pruned_blocks(blocks, method, module.experts, (module.name, part), known):
            xs = weigh(xs, method, module.experts, part)
            x, election = COMBINE[method.combine](xs, method, known)
            merged.append(x.mul_(method.strength))
            elections.append(election)
        return merged[0] if len(merged) == 1 else torch.cat(merged), Election.of(elections)

    x, election = merge_blocks(known)
    if of_tensor and needs_another_majority(known, [election]):
        return merge_blocks(replace(known, majority=-1))
    return x, election


def _shares(module: Module) -> list[float]:
    """The factor of each expert's update in a sum or mean of updates."""
    method = module.method
    share = method.strength / (len(module.pairs) if method.combine == "mean" else 1)
    return [share * weight for weight in module.weights]


def _prune_and_scale(module: Module, known: Known) -> tuple[dict[str, list[Tensor]], int]:
    """The pruned and scaled A and B of each expert, and how many rank rows have no scale.

    Raises EmptyRowsError unless empty rows are to be left out.
    """
    method = module.method
    full = {"A": [pair.A for pair in module.pairs], "B": [pair.B for pair in module.pairs]}
    pruned = {}
    for part, xs in full.items():
        blocks = pruned_blocks([lambda xs=xs: xs], method, module.experts, (module.name, part), known)
        (pruned[part],) = blocks
    gain = math.prod(1 / step.density for step in method.prunings if step.rescale)
    scales, dropped = {}, {}
    for part, source in method.scaled_parts.items():
        before, after = (rank_sums(xs[source], RANK_AXIS[source]) for xs in (full, pruned))
        undefined = (after == 0) & module.there & before.any(1, keepdim=True)  # an expert of zeros needs no scale
        dropped[source] = int(undefined.sum())
        if method.scale.empty_row == "error" and dropped[source]:
            raise EmptyRowsError(find_empty_rows(module, source, full[source], undefined), method.prune.rule)
        scales[part] = rank_scales(before * gain, after, method.scale)
    for part, of_experts in scales.items():
        axis = RANK_AXIS[part]
        scaled = []
        for x, own, s in zip(pruned[part], full[part], of_experts, strict=True):
            s = s[: x.shape[axis]].unsqueeze(1 - axis)
            scaled.append(x * s if x is own else x.mul_(s))  # where nothing was pruned, x is the expert's own
        pruned[part] = scaled
    return pruned, sum(dropped.values())
