"""One module of all experts: the input and output of a merge step, and the checks of the input."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair
from robustmerge.method import AnyMethod, problems_of_weights
from robustmerge.rules import RANK_AXIS, Election, smallest_density
from robustmerge.stage.settings import UserError

LARGEST = torch.finfo(torch.float32).max
CANCELLED = 1e-3  # of its terms' sizes: a smaller sum has lost half of float32's digits
SHOWN_ROWS = 10  # of those that an error names


class Module(NamedTuple):
    """One module of all experts, in the order of their sorted names. pairs: A [r_n, d_in], B [d_out, r_n].

    absent: the experts that lack the module, whose pairs are zero updates.
    """

    name: str
    experts: Sequence[str]
    pairs: Sequence[LoraPair]
    absent: Collection[str] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the update."""
        return self.pairs[0].B.shape[0], self.pairs[0].A.shape[1]

    @property
    def ranks(self) -> list[int]:
        return [pair.rank for pair in self.pairs]

    @property
    def present(self) -> list[LoraPair]:
        """The pairs of the experts that have the module."""
        pairs = zip(self.experts, self.pairs, strict=True)
        return [pair for expert, pair in pairs if expert not in self.absent]

    @property
    def rank_mask(self) -> Tensor:
        """Which rank indices each expert has [T, R]; R: the largest rank."""
        device = self.pairs[0].A.device
        return torch.arange(max(self.ranks), device=device) < torch.tensor(self.ranks, device=device)[:, None]


def complete_module(
    name: str, found: Mapping[str, LoraPair | None], method: AnyMethod, device: str | None = None
) -> Module:
    """Build the module of all experts, sorted by name, with a zero update for each that lacks it (None in `found`).

    device: where the pairs are put; None: where the first pair is.
    A zero update has rank 0, so that it adds nothing to a sum of products and no column to a basis of knots or core.
    Where A and B are summed separately, or a function gets the pairs, its A and B are zeros of the others' largest
    rank: then the cross terms B_m A_n with that expert are 0 too, unlike those of an adapter whose A is not zero.
    """
    present = [pair for pair in found.values() if pair is not None]
    rank = max(pair.rank for pair in present) if method.needs_full_zeros else 0
    A, B = present[0].A, present[0].B
    zero = LoraPair(A.new_zeros(rank, A.shape[1]), B.new_zeros(B.shape[0], rank))
    names = sorted(found)
    pairs = [zero if (pair := found[expert]) is None else pair for expert in names]
    pairs = [pair.to(device or A.device) for pair in pairs]
    return Module(name, names, pairs, [expert for expert in names if found[expert] is None])


class Merged(NamedTuple):
    """The merged update of one module.

    cut: the squared norm of what a cut to a lower rank left out. dropped: rank rows left out for lack of a scale.
    election: of signs.
    """

    update: LoraPair | Tensor
    cut: float = 0.0
    dropped: int = 0
    election: Election = Election()


def to_cpu(merged: Merged) -> Merged:
    """The merged module with its update on the CPU."""
    return merged._replace(update=merged.update.to("cpu"))


def check_experts(experts: Mapping[str, Mapping[str, LoraPair]], method: AnyMethod) -> None:
    """Raises UserError naming every expert whose shapes, or ranks where these must be equal, differ from another's.

    A module is compared with that of the first expert that has it. With targets=strict, every expert that has other
    modules than the first one is named too.
    """
    if not experts or not all(experts.values()):
        raise UserError("there are no experts to merge, or one has no modules")
    problems = problems_of_weights(method.weights, experts)
    names = sorted(experts)
    for place, other in enumerate(names):
        unshared = sorted(set(experts[names[0]]) ^ set(experts[other]))
        if unshared and method.targets == "strict":
            problems.append(f"only one of the experts '{names[0]}' and '{other}' has module '{unshared[0]}'")
            continue
        for module, pair in experts[other].items():
            first = next(name for name in names[: place + 1] if module in experts[name])
            (rank, d_in), d_out = experts[first][module].A.shape, experts[first][module].B.shape[0]
            (other_rank, other_in), other_out = pair.A.shape, pair.B.shape[0]
            where = f"module '{module}' of the experts '{first}' and '{other}'"
            if (d_out, d_in) != (other_out, other_in):
                problems.append(f"{where} has shapes {d_out} x {d_in} and {other_out} x {other_in}")
            elif method.needs_equal_ranks and rank != other_rank:
                problems.append(f"{where} has ranks {rank} and {other_rank}; {method.rank_advice}".rstrip("; "))
    if problems:
        raise UserError("\n".join(problems))


def check_module(module: Module) -> Module:
    """Return the module in float32.

    Raises UserError naming every expert and row of A or B with NaN or infinity, or whose B A is too large for float32.
    """
    pairs = [LoraPair(pair.A.float(), pair.B.float()) for pair in module.pairs]
    problems: list[str] = []
    for expert, pair in zip(module.experts, pairs, strict=True):
        before = len(problems)
        for part, x in (("A", pair.A), ("B", pair.B)):
            if math.isfinite(x.sum()):  # a sum is many times faster, and not finite if a value is not
                continue
            bad = (~torch.isfinite(x)).any(1)
            if bad.any():
                row, more = int(bad.nonzero()[0]), int(bad.sum()) - 1
                also = f" (and {more} rows more)" if more else ""
                where = f"expert '{expert}', module '{module.name}': row {row} of {part}"
                scaled = " once multiplied by alpha/r" if part == "B" else ""
                problems.append(f"{where} holds NaN or infinity{scaled}{also}")
        if len(problems) == before and squared_norm(pair) is None:
            where = f"expert '{expert}', module '{module.name}'"
            problems.append(f"{where}: its update, B A with alpha/r, is too large for float32")
    if problems:
        raise UserError("\n".join(problems))
    return module._replace(pairs=pairs)


class PairNorms(NamedTuple):
    """Squared Frobenius norms of B A = sum_k b_k a_k^T, and of its terms, sum_k |b_k|^2 |a_k|^2: more if they cancel.

    update: None for one too large for float32: a value is not finite, or a sum of B A may not be.
    """

    update: float | None
    terms: float


def measure_pair(pair: LoraPair) -> PairNorms:
    """Measure a pair by (B^T B) * (A A^T), r x r instead of d_out x d_in: by its sum, and that of its diagonal."""
    inner = (pair.B.T @ pair.B) * (pair.A @ pair.A.T)
    value = float(inner.sum())
    if math.isfinite(value) and value >= CANCELLED * float(inner.abs().sum()):
        return PairNorms(value, float(inner.diagonal().sum()))
    A, B = pair.A.double(), pair.B.double()
    inner = (B.T @ B) * (A @ A.T)
    fits = float((B.norm(dim=0) * A.norm(dim=1)).sum()) <= LARGEST  # bounds every sum of B A; False for NaN
    return PairNorms(max(0.0, float(inner.sum())) if fits else None, float(inner.diagonal().sum()))


def squared_norm(update: LoraPair | Tensor) -> float | None:
    """Squared norm ||D||_F^2; None for an update too large for float32."""
    if isinstance(update, LoraPair):
        return measure_pair(update).update
    norm = float(torch.linalg.vector_norm(update))
    norm = norm if math.isfinite(norm) else float(torch.linalg.vector_norm(update, dtype=torch.float64))
    return norm**2 if math.isfinite(norm) else None


def measure_experts(module: Module) -> dict[str, PairNorms]:
    """The norms of each expert's update, by name; each is finite. Raises UserError as `check_module` does."""
    norms = {expert: measure_pair(pair) for expert, pair in zip(module.experts, module.pairs, strict=True)}
    if any(norm.update is None for norm in norms.values()):
        check_module(module)
    return norms


def measure_merged(update: LoraPair | Tensor, module: str) -> float:
    """The squared norm of a merged update. Raises UserError if it is too large for float32."""
    if (value := squared_norm(update)) is None:
        raise UserError(f"module '{module}': the merged update is too large for float32; take a smaller strength")
    return value


@dataclass(frozen=True)
class EmptyRow:
    """A rank row emptied by pruning. density: the smallest at which no row of its tensor is empty, if any."""

    expert: str
    module: str
    part: str
    row: int
    density: float | None

    def __str__(self) -> str:
        return (
            f"expert '{self.expert}', module '{self.module}': row {self.row} of {self.part} (along the rank, from 0) "
            "is empty after pruning, so its scale is undefined"
        )


class EmptyRowsError(UserError):
    """Raised for rank rows whose scale is undefined; says what to do. rows: all of them."""

    def __init__(self, rows: Sequence[EmptyRow], prune_rule: str):
        self.rows = list(rows)
        self.prune_rule = prune_rule
        super().__init__("\n".join([*map(str, self.rows[:SHOWN_ROWS]), self._advice()]))

    def _advice(self) -> str:
        more = len(self.rows) - SHOWN_ROWS
        rest = f"(and {more} rows more) " if more > 0 else ""
        drop = "merge.scale.empty_row=drop leaves such rows out"
        if self.prune_rule != "magnitude":
            return f"{rest}{drop}"
        densities = [row.density for row in self.rows if row.density is not None]
        if len(densities) < len(self.rows):
            return f"{rest}no density works, since a row is zero before pruning; {drop}"
        return f"{rest}the smallest density that works is {max(densities)} (merge.prune.density); or {drop}"


def find_empty_rows(
    module: Module, part: str, full: Sequence[Tensor], empty: Sequence[Tensor], count: str
) -> list[EmptyRow]:
    """Find the rank rows that pruning emptied.

    full: the experts' tensors of a part before pruning. empty [r]: which rank rows of each are empty after it.
    count: of the pruning, see `rules.threshold_index`.
    """
    return [
        EmptyRow(expert, module.name, part, row, smallest_density(x, RANK_AXIS[part], count))
        for expert, x, is_empty in zip(module.experts, full, empty, strict=True)
        for row in is_empty.nonzero().flatten().tolist()
    ]
