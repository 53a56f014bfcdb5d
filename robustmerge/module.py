"""One module of all experts, and what is checked of it before any method sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method, OutsideMethod, problems_of_weights, ways_past_ranks
from robustmerge.rules import RANK_AXIS, Election, smallest_density
from robustmerge.stage.settings import UserError


class Merged(NamedTuple):
    """The update of one module. dropped: rank rows without a scale, left out. election: how signs fell."""

    update: LoraPair | Tensor
    dropped: int = 0
    election: Election = Election()


class Module(NamedTuple):
    """One module of all experts, in the order of their sorted names: what every step of a merge looks at."""

    name: str
    experts: Sequence[str]
    pairs: Sequence[LoraPair]
    method: Method | OutsideMethod

    @property
    def weights(self) -> list[float]:
        return [(self.method.weights or {}).get(name, 1.0) for name in self.experts]

    @property
    def rank(self) -> int | None:
        """The rank to cut the merged update to."""
        rank = self.method.out.rank
        return max(pair.rank for pair in self.pairs) if rank == "experts" else rank

    @property
    def there(self) -> Tensor:
        """Which rank indices each expert has [T, R]; R: the largest rank."""
        ranks = torch.tensor([pair.rank for pair in self.pairs])
        return torch.arange(int(ranks.max())) < ranks[:, None]


def check_alike(experts: Mapping[str, Mapping[str, LoraPair]], method: Method | OutsideMethod) -> None:
    """Raises UserError naming every expert that differs from the first in its modules, shapes or, if need be, ranks."""
    if not experts or not all(experts.values()):
        raise UserError("there are no experts to merge, or one has no modules")
    first, *others = sorted(experts)
    problems = problems_of_weights(getattr(method, "weights", None), experts)
    for other in others:
        odd = sorted(set(experts[first]) ^ set(experts[other]))
        if odd:
            problems.append(f"only one of the experts '{first}' and '{other}' has module '{odd[0]}'")
            continue
        for module, pair in experts[first].items():
            (rank, d_in), d_out = pair.A.shape, pair.B.shape[0]
            (other_rank, other_in), other_out = experts[other][module].A.shape, experts[other][module].B.shape[0]
            where = f"module '{module}' of the experts '{first}' and '{other}'"
            if (d_out, d_in) != (other_out, other_in):
                problems.append(f"{where} has shapes {d_out} x {d_in} and {other_out} x {other_in}")
            elif getattr(method, "needs_equal_ranks", False) and rank != other_rank:
                problems.append(f"{where} has ranks {rank} and {other_rank}; {ways_past_ranks(method)}".rstrip("; "))
    if problems:
        raise UserError("\n".join(problems))


def check_module(module: Module) -> Module:
    """The module in float32. Raises UserError naming every expert and row of A or B that holds NaN or infinity."""
    pairs = [LoraPair(pair.A.float(), pair.B.float()) for pair in module.pairs]
    problems = []
    for expert, pair in zip(module.experts, pairs, strict=True):
        for part, x in (("A", pair.A), ("B", pair.B)):
            if math.isfinite(x.sum()):  # a sum is many times faster, and not finite if a value is not
                continue
            bad = (~torch.isfinite(x)).any(1)
            if bad.any():
                row, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
                also = f" (and {more} rows more)" if more else ""
                where = f"expert '{expert}', module '{module.name}': row {row} of {part}"
                problems.append(f"{where} holds NaN or infinity{also}")
    if problems:
        raise UserError("\n".join(problems))
    return module._replace(pairs=pairs)


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
