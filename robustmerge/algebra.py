"""Merging of modules in memory: prune, scale and combine T experts, RobustMerge and every other method of the paper.

In a notebook:

>>> import torch
>>> from robustmerge.formats.adapter import LoraPair
>>> from robustmerge.method import Method
>>> cat = LoraPair(A=torch.tensor([[1.0, 2.0]]), B=torch.tensor([[3.0], [0.0]]))
>>> dog = LoraPair(A=torch.tensor([[0.0, 1.0]]), B=torch.tensor([[0.0], [1.0]]))
>>> halves = Method(name="average", space="delta", combine="mean", strength=1.0)
>>> merge_pairs({"cat": cat, "dog": dog}, halves).delta()
tensor([[1.5000, 3.0000],
        [0.0000, 0.5000]])
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustmerge.device import computing_on
from robustmerge.formats.adapter import LoraPair
from robustmerge.function_method import collect_over_model, merge_by_function
from robustmerge.graded import is_over_depth
from robustmerge.low_rank import concatenate, truncate
from robustmerge.method import AnyMethod, FunctionMethod, Method
from robustmerge.method_parts import Prune
from robustmerge.module import (
    EmptyRowsError,
    Merged,
    Module,
    check_experts,
    check_module,
    complete_module,
    find_empty_rows,
    measure_merged,
)
from robustmerge.rules import COMBINE, RANK_AXIS, Election, Statistics, rank_scales, rank_sums
from robustmerge.spaces import SPACES, Blocks
from robustmerge.stage.settings import UserError
from robustmerge.steps import calibrate, equalize, finish, prepare
from robustmerge.thresholds import Piece, measure, pruned_blocks, weigh

Visit = Callable[[Callable[[Module], Any]], Iterable[Any]]  # a function of a module -> its results for all modules


def merge_pairs(experts: Mapping[str, LoraPair], method: AnyMethod, module: str = "") -> LoraPair | Tensor:
    """Merge one module. experts: name -> pair, A [r, d_in] and B [d_out, r]; module: its name, for random pruning.

    Returns a pair, or the dense update [d_out, d_in] where it has no low rank. Raises UserError as `merge_models` does,
    and if a strength or weight is a list over the layers, since a single module has no place among them.
    """
    if any(map(is_over_depth, (method.strength, *(method.weights or {}).values()))):
        raise UserError(
            f"{method.name} has a list of numbers over the layers, and one module alone has no depth: merge the whole "
            "model (merge_models), or give one number (merge.strength, merge.weights)"
        )
    return merge_models({name: {module: pair} for name, pair in experts.items()}, method)[module]


def merge_models(
    experts: Mapping[str, Mapping[str, LoraPair]], method: AnyMethod, device: str | None = None
) -> dict[str, LoraPair | Tensor]:
    """Merge whole models that are in memory. experts: name -> module -> pair; returns module -> update.

    device: where everything is computed and the updates end up; None: for each module, where the first expert has it.
    Raises UserError if the experts do not fit together, a scale is undefined, an input or a merged value is not finite,
    or the device is not there.
    """
    names = sorted(experts)
    check_experts(experts, method)
    with computing_on(device or "cpu"):
        modules = [
            check_module(complete_module(name, {expert: experts[expert].get(name) for expert in names}, method, device))
            for name in sorted(set().union(*experts.values()))
        ]
        methods = method.by_module([module.name for module in modules])
        statistics = measure_model(method, methods, names, lambda function: map(function, modules))
        merged = [merge_module(module, methods[module.name], statistics) for module in modules]
        if needs_another_majority(statistics, [one.election for one in merged]):
            statistics = replace(statistics, majority=-1)
            merged = [merge_module(module, methods[module.name], statistics) for module in modules]
        updates = {module.name: one.update for module, one in zip(modules, merged, strict=True)}
        for name, update in updates.items():
            measure_merged(update, name)
        return updates


def measure_model(
    method: AnyMethod, methods: Mapping[str, AnyMethod], experts: Sequence[str], visit: Visit
) -> Statistics:
    """Measure what a method must know of the whole model before it can merge a module; for most methods nothing.

    methods: module -> the method there, see `Method.by_module`.
    visit: calls a function on all modules, checked, as often as it is called itself.
    """
    if isinstance(method, FunctionMethod):
        pairs = visit(lambda module: (module.name, prepare(module, method).pairs))
        # As a module has it: with one number for a strength.
        in_module = next(one for one in methods.values() if isinstance(one, FunctionMethod))
        return Statistics(collected=collect_over_model(in_module, pairs))
    if not method.needs_whole_model:
        return Statistics()

    weights = {name: one.weights_of(experts) for name, one in methods.items() if isinstance(one, Method)}

    def visit_parts(add: Callable[[Piece], None]) -> None:
        def add_module(module: Module) -> None:
            pairs = prepare(module, method).pairs
            for part, blocks in SPACES[method.space](pairs, method).parts.items():
                add(Piece(module.name, part, blocks, weights[module.name], module.absent))

        deque(visit(add_module), maxlen=0)

    return measure(method, experts, visit_parts)


def needs_another_majority(statistics: Statistics, elections: Sequence[Election]) -> bool:
    """Whether modules must be merged again because the assumed majority, positive signs, was wrong and mattered."""
    undecided = any(election.undecided for election in elections)
    return statistics.majority == 1 and undecided and sum(election.signs for election in elections) <= 0


def merge_module(module: Module, method: AnyMethod, statistics: Statistics) -> Merged:
    """Merge one module: the steps before the rule, the rule, the steps after it, and the cut to the rank asked for.

    module: in float32 and without NaN (`check_module`). method: that of this module, see `Method.by_module`.
    statistics: those of `measure_model`. The steps: see `steps.py`.
    """
    experts = equalize(module, method.equalize)
    merged = _merge_by_rule(calibrate(experts, method.calibrate), method, statistics)
    update, cut = truncate(finish(merged.update, experts, method), method.out.rank_for(module.ranks))
    return merged._replace(update=update, cut=cut)


def _merge_by_rule(module: Module, method: AnyMethod, statistics: Statistics) -> Merged:
    """Merge one module by the method's rule.

    In factor space RobustMerge is A = lambda sum_n A~_n, B = lambda sum_n B~_n diag(S~_n) (released code), and with
    product=each D = lambda sum_n B~_n diag(S~_n) A~_n (equation 5). In the other spaces every block of coordinates is
    pruned and combined by itself.
    """
    if isinstance(method, FunctionMethod):
        return Merged(merge_by_function(module, method, statistics.collected))
    if method.is_sum_of_updates:  # the same in each such space: keep its low rank
        return Merged(concatenate(module.pairs, method.shares_of(module.experts)))
    coordinates = SPACES[method.space](module.pairs, method)
    parts, dropped = coordinates.parts, 0
    if method.space == "factors":
        scaled, dropped = _prune_and_scale(module, method, statistics)
        if method.product == "each":
            products = [LoraPair(A, B) for A, B in zip(scaled["A"], scaled["B"], strict=True)]
            return Merged(concatenate(products, method.shares_of(module.experts)), dropped=dropped)
        method = replace(method, first=None, prune=Prune(scope=method.prune.scope))  # done
        parts = {"A": [lambda: scaled["A"]], "B": [lambda: scaled["B"]]}
    merged, elections = {}, []
    for part, blocks in parts.items():
        merged[part], election = _merge_part(module, method, part, blocks, statistics)
        elections.append(election)
    return Merged(coordinates.decode(merged), dropped=dropped, election=Election.of(elections))


def _merge_part(
    module: Module, method: Method, part: str, blocks: Blocks, statistics: Statistics
) -> tuple[Tensor, Election]:
    """Merge one part block by block: strength * combine(prune(x_1), ..., prune(x_T))."""
    by_tensor = method.prune.scope == "tensor"
    if by_tensor and (len(blocks) > 1 or method.combine == "balanced"):
        piece = Piece(module.name, part, blocks, method.weights_of(module.experts))
        statistics = measure(method, module.experts, lambda add: add(piece))

    def merge_blocks(statistics: Statistics) -> tuple[Tensor, Election]:
        merged, elections = [], []
        for xs in pruned_blocks(blocks, method, module.experts, (module.name, part), statistics):
            xs = weigh(xs, method.weights_of(module.experts), part)
            x, election = COMBINE[method.combine](xs, method, statistics)
            merged.append(x.mul_(method.factor))
            elections.append(election)
        return merged[0] if len(merged) == 1 else torch.cat(merged), Election.of(elections)

    x, election = merge_blocks(statistics)
    if by_tensor and needs_another_majority(statistics, [election]):
        return merge_blocks(replace(statistics, majority=-1))
    return x, election


def _prune_whole(module: Module, method: Method, part: str, xs: list[Tensor], statistics: Statistics) -> list[Tensor]:
    """Prune the experts' tensors of a part by all prunings of the method."""
    (pruned,) = pruned_blocks([lambda: xs], method, module.experts, (module.name, part), statistics)
    return pruned


def _prune_and_scale(module: Module, method: Method, statistics: Statistics) -> tuple[dict[str, list[Tensor]], int]:
    """Prune and scale A and B of each expert (equations 2 to 4); returns them and how many rank rows have no scale.

    Raises EmptyRowsError unless empty rows are to be left out.
    """
    full = {"A": [pair.A for pair in module.pairs], "B": [pair.B for pair in module.pairs]}
    pruned = {part: _prune_whole(module, method, part, xs, statistics) for part, xs in full.items()}
    gain = math.prod(1 / step.density for step in method.prunings if step.rescale)  # not l1, which needs no scale
    scales, dropped = {}, {}
    for part, source in method.scaled_parts.items():
        before, after = (rank_sums(xs[source], RANK_AXIS[source]) for xs in (full, pruned))
        # An expert of zeros needs no scale.
        undefined = (after == 0) & module.rank_mask & before.any(1, keepdim=True)
        dropped[source] = int(undefined.sum())
        if method.scale.empty_row == "error" and dropped[source]:
            rows = find_empty_rows(module, source, full[source], list(undefined), method.prune.count)
            is_known = method.prune.scope != "model" and method.first is None and not method.prune.skip
            raise EmptyRowsError(rows, method.prune.rule if is_known else "")  # else no density is sure to help
        scales[part] = rank_scales(before * gain, after, method.scale)
    for part, scale in scales.items():
        axis = RANK_AXIS[part]
        scaled = []
        for x, unpruned, s in zip(pruned[part], full[part], scale, strict=True):
            s = s[: x.shape[axis]].unsqueeze(1 - axis)
            scaled.append(x * s if x is unpruned else x.mul_(s))  # where nothing was pruned, x is the expert's own
        pruned[part] = scaled
    return pruned, sum(dropped.values())
