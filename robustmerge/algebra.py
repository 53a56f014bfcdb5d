"""One module of T experts through a merge method. Every method of the paper is these few lines.

In a notebook:

>>> import torch
>>> from robustmerge.adapter import LoraPair
>>> from robustmerge.method import Method
>>> cat = LoraPair(A=torch.tensor([[1.0, 2.0]]), B=torch.tensor([[3.0], [0.0]]))
>>> dog = LoraPair(A=torch.tensor([[0.0, 1.0]]), B=torch.tensor([[0.0], [1.0]]))
>>> halves = Method(name="average", space="delta", combine="mean", strength=1.0)
>>> merge_pairs({"cat": cat, "dog": dog}, halves).delta()
tensor([[1.5000, 3.0000],
        [0.0000, 0.5000]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.adapter import LoraPair
from robustmerge.method import Method
from robustmerge.rules import COMBINE, PRUNE, RANK_AXIS, generator_for, rank_scales, smallest_density
from robustmerge.settings import UserError
from robustmerge.spaces import SPACES, Stack, concatenate, truncate


@dataclass(frozen=True)
class EmptyRow:
    """A rank row that pruning left without a single entry. density: the smallest that keeps one, if any does."""

    expert: str
    module: str
    part: str
    row: int
    density: float | None


class EmptyRowsError(UserError):
    """Rank rows whose scale is x/0. rows: all of them."""

    def __init__(self, rows: Sequence[EmptyRow], prune_rule: str):
        self.rows = list(rows)
        self.prune_rule = prune_rule
        super().__init__("\n".join([*map(_describe, self.rows[:10]), self._advice()]))

    def _advice(self) -> str:
        rest = f"(and {len(self.rows) - 10} rows more) " if len(self.rows) > 10 else ""
        drop = "merge.scale.empty_row=drop leaves such rows out"
        densities = [row.density for row in self.rows]
        if self.prune_rule == "magnitude" and None not in densities:
            return f"{rest}the smallest density that works is {max(densities)} (merge.prune.density); or {drop}"
        zero = "no density works, since a row is zero before pruning; " if self.prune_rule == "magnitude" else ""
        return f"{rest}{zero}{drop}"


def _describe(row: EmptyRow) -> str:
    return (
        f"expert '{row.expert}', module '{row.module}': row {row.row} of {row.part} (along the rank, from 0) is "
        "empty after pruning, so its scale is undefined"
    )


class Merged(NamedTuple):
    """The update of one module, and how many rank rows of experts were left out of its scales."""

    update: LoraPair | Tensor
    dropped: int


def merge_pairs(experts: Mapping[str, LoraPair], method: Method, module: str = "") -> LoraPair:
    """Merge one module. experts: name -> pair, A [r, d_in] and B [d_out, r]; module: its name, for random pruning.

    Raises UserError if a value is not finite, or where a scale is undefined.
    """
    names = sorted(experts)
    return merge_module(names, [experts[name] for name in names], method, module).update


def merge_module(names: Sequence[str], pairs: Sequence[LoraPair], method: Method, module: str) -> Merged:
    """encode -> prune -> scale -> combine -> decode, for pairs in the order of their sorted names."""
    pairs = [LoraPair(p.A.float(), p.B.float()) for p in pairs]
    refuse_non_finite(names, pairs, module)
    weights = [(method.weights or {}).get(name, 1.0) for name in names]
    share = method.strength / (len(pairs) if method.combine == "mean" else 1)
    if method.space != "factors" and method.is_linear:  # the same sum in each such space: keep its low rank
        return Merged(truncate(concatenate(pairs, [share * w for w in weights]), method.out.rank), 0)
    stack, basis = SPACES[method.space].encode(pairs)
    pruned = {part: _prune(stack[part], method, names, module, part) for part in stack}
    scaled, dropped = _scale(stack, pruned, method, names, module)
    if method.strength_key == "each":  # sum_n B~_n diag(S~_n) A~_n, equation 5
        parts = [LoraPair(a, b) for a, b in zip(scaled["A"], scaled["B"], strict=True)]
        return Merged(truncate(concatenate(parts, [share * w for w in weights]), method.out.rank), dropped)
    ones = [1.0] * len(pairs)
    combined = {  # an expert's weight multiplies its update, so it goes to one of the two factors
        part: method.strength * COMBINE[method.combine](x, ones if part == "A" else weights)
        for part, x in scaled.items()
    }
    return Merged(truncate(SPACES[method.space].decode(combined, basis), method.out.rank), dropped)


def refuse_non_finite(names: Sequence[str], pairs: Sequence[LoraPair], module: str) -> None:
    """Raises UserError naming every expert and row of A or B that holds NaN or infinity."""
    problems = []
    for name, pair in zip(names, pairs, strict=True):
        for part, x in (("A", pair.A), ("B", pair.B)):
            bad = (~torch.isfinite(x)).any(1)
            if bad.any():
                row, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
                also = f" (and {more} rows more)" if more else ""
                where = f"expert '{name}', module '{module}': row {row} of {part}"
                problems.append(f"{where} holds NaN or infinity{also}")
    if problems:
        raise UserError("\n".join(problems))


def _prune(x: Tensor, method: Method, names: Sequence[str], module: str, part: str) -> Tensor:
    draws = [generator_for(method.seed, name, module, part) for name in names]
    return x * PRUNE[method.prune.rule](x, method.prune, draws)


def _scale(full: Stack, pruned: Stack, method: Method, names: Sequence[str], module: str) -> tuple[Stack, int]:
    """Scale the rank indices of each part, and rescale by the density if the method does.

    Raises EmptyRowsError unless empty rows are to be left out; then they count in the second value.
    """
    gain = 1 / method.prune.density if method.prune.rescale else 1.0
    scaled, dropped = {}, 0
    for part, x in pruned.items():
        scaled[part] = x if gain == 1 else x * gain
        source = method.scaled_parts.get(part)
        if source is None:
            continue
        scales, empty = rank_scales(full[source], pruned[source], RANK_AXIS[source], method.scale)  # [T, r]
        if empty.any() and method.scale.empty_row == "error":
            rows = _empty_rows(full[source], empty, method, names, module, source)
            raise EmptyRowsError(rows, method.prune.rule)
        dropped += int(empty.sum())
        scaled[part] = scaled[part] * scales.unsqueeze(3 - RANK_AXIS[part])
    return scaled, dropped


def _empty_rows(
    full: Tensor, empty: Tensor, method: Method, names: Sequence[str], module: str, part: str
) -> list[EmptyRow]:
    found = []
    for n, row in torch.nonzero(empty).tolist():
        density = smallest_density(full[n], RANK_AXIS[part] - 1, method.prune.count)
        found.append(EmptyRow(names[n], module, part, row, density))
    return found
