"""What the benchmark measures: a row for each method, in each space that matters, and the lower bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robustmerge.method import list_methods

BOUND = "lower bound"


@dataclass(frozen=True)
class MergingRow:
    """One way of merging. peft: the kind of `add_weighted_adapter` that does the same, if there is one.

    changes: keys of the method's file that are set, with __ for a dot. by_hand: measured with --delta only.
    as_stage: with the sha256 of everything that goes in and comes out, as a manifest has them.
    """

    name: str
    method: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    peft: str | None = None
    by_hand: bool = False
    as_stage: bool = False


def _row(name: str, peft: str | None = None, method: str | None = None, **rest: Any) -> MergingRow:
    return MergingRow(name, method=method or name.partition(",")[0], peft=peft, **rest)


MODEL, DELTA = {"prune__scope": "model"}, {"space": "delta"}


ROWS = (
    MergingRow(BOUND),
    _row("average"),
    _row("task_arithmetic", "linear"),
    _row("task_arithmetic, delta", "cat", changes=DELTA),
    _row("robustmerge"),
    _row("robustmerge, 2 workers", workers=2),
    _row("robustmerge, with manifest", as_stage=True),
    _row("robustmerge, out as experts", changes={"out__dtype": "experts"}),
    _row("robustmerge_eq5"),
    _row("ties", "ties"),
    _row("ties, whole model", "ties", changes=MODEL),
    _row("dare", "dare_linear"),
    _row("dare_ties", "dare_ties"),
    _row("dare_ties, whole model", "dare_ties", changes=MODEL),
    _row("pcb"),
    _row("svd", "svd"),
    _row("knots_ties"),
    _row("knots_ties, 2 workers", workers=2),
    _row("knots_dare_ties"),
    _row("ties, core", changes={"space": "core"}),
    _row("ties, delta, whole model", changes=DELTA | MODEL, by_hand=True),
)


SMALL = (BOUND, "average", "robustmerge", "robustmerge_eq5", "ties", "dare_ties", "pcb", "svd", "knots_ties", "tsv_m")


def list_rows() -> list[MergingRow]:
    """The rows above, and one at its defaults for every other method file."""
    methods = {row.method for row in ROWS}
    return [*ROWS, *(_row(name) for name in list_methods() if name not in methods)]
