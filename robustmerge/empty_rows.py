"""Rank rows that pruning left without a single entry: their scale would be x/0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from robustmerge.rules import RANK_AXIS, smallest_density
from robustmerge.settings import UserError

if TYPE_CHECKING:
    from robustmerge.module import Module


@dataclass(frozen=True)
class EmptyRow:
    """density: the smallest that keeps an entry of the row's tensor in every row, if any does."""

    expert: str
    module: str
    part: str
    row: int
    density: float | None


class EmptyRowsError(UserError):
    """Rank rows whose scale is undefined. rows: all of them."""

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


def find_empty_rows(module: Module, part: str, full: Sequence[Tensor], empty: Sequence[Tensor]) -> list[EmptyRow]:
    """full: the experts' tensors of a part before pruning; empty [r]: which rank rows of each are empty after it."""
    found = []
    for expert, x, gone in zip(module.experts, full, empty, strict=True):
        for row in gone.nonzero().flatten().tolist():
            density = smallest_density(x, RANK_AXIS[part], module.method.prune.count)
            found.append(EmptyRow(expert, module.name, part, row, density))
    return found
