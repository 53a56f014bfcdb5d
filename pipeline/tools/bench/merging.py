"""What merging costs: every row in a fresh process, beside a lower bound and PEFT."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.tools.bench.experts import Shape, find_experts
from pipeline.tools.bench.merging_rows import BOUND, SMALL, Row, all_rows
from pipeline.tools.bench.process_cost import Cost, measure, median, warm
from pipeline.tools.bench.table import describe_machine, keep, table_of
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError, suggest

LONG = 60  # CPU seconds above which one run says enough


def bench(
    shape: Shape, rows: Sequence[Row], folder: Path, runs: int, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure row by row; the bound is measured first, whatever the rows. folder: for experts and what is merged."""
    experts = find_experts(folder, shape)
    warm(experts)
    often = range(2 * runs - 1)  # these two are in every number
    idle = median([measure({"work": "nothing"}) for _ in often])
    bound = median([_run(Row(BOUND, work="sum"), experts, folder) for _ in often])
    tell(f"a process that merges nothing: {idle.cpu:.2f} CPU s after its imports, {idle.private:.0f} MB")
    made, peft = describe_machine(), {}
    for row in rows:
        told: dict[str, Any] = {"name": row.name, "made": made}
        try:
            cost = bound if row.work == "sum" else _measure_row(row, experts, folder, runs)
            if row.peft and row.peft not in peft:
                peft[row.peft] = _measure_peft(row.peft, experts, shape, runs)
            told |= {"cpu": cost.cpu - idle.cpu, "wall": cost.wall - idle.wall, "private": cost.private}
            told |= {"bound": bound.cpu - idle.cpu, "workers": row.workers, "changes": row.changes}
            told |= {"peft": peft[row.peft]} if row.peft else {}
            tell(f"{row.name}: {told['cpu']:.2f} CPU s, {told['wall']:.2f} s, {told['private']:.0f} MB")
        except UserError as error:
            told["failed"] = str(error)
            tell(f"{row.name}: failed: {error}")
        yield told


def _measure_row(row: Row, experts: Sequence[Path], folder: Path, runs: int) -> Cost:
    costs = [_run(row, experts, folder)]
    while len(costs) < runs and costs[0].cpu < LONG:
        costs.append(_run(row, experts, folder))
    return median(costs)


def _run(row: Row, experts: Sequence[Path], folder: Path) -> Cost:
    work: dict[str, Any] = {"work": row.work, "experts": [str(path) for path in experts]}
    if row.work == "sum":
        return measure(work)
    made = Path(tempfile.mkdtemp(prefix="merged-", dir=folder))
    try:
        work |= {
            "method": row.method,
            "changes": row.changes,
            "workers": row.workers,
            "as_stage": row.as_stage,
            "out": str(made / "out"),
        }
        return measure(work)
    finally:
        shutil.rmtree(made)


def _measure_peft(kind: str, experts: Sequence[Path], shape: Shape, runs: int) -> dict[str, Any]:
    """peft's time for all modules, from one of each size; svd takes minutes a module, so it runs once."""
    modules = list(shape.one_of_each().values())
    work = {"work": "peft", "kind": kind, "rank": shape.rank, "repeats": 1 if kind == "svd" else runs}
    cost = measure({**work, "experts": [str(path) for path in experts], "modules": modules})
    return {"kind": kind, **cost.answer}


def choose_rows(named: Sequence[str] | None, delta: bool, small: bool = False) -> list[Row]:
    """The rows whose names begin with one of the words; without words all, or those of a quick look.

    Raises UserError for a word that begins none.
    """
    rows = [row for row in all_rows() if delta or not row.by_hand]
    if named is None:
        return [row for row in rows if row.name in SMALL] if small else rows
    for word in named:
        if not any(row.name.startswith(word) for row in rows):
            raise UserError(f"no row begins with '{word}'; {suggest(word, [row.name for row in rows])} (--rows)")
    return [row for row in rows if any(row.name.startswith(word) for word in named)]


def read_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick look: two layers, few rows, one run")
    parser.add_argument("--delta", action="store_true", help="also the rows that take long and much disk")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only the rows whose names begin with one of these")
    parser.add_argument("--runs", type=int, help="of each row, whose median counts (default 3; of a quick look 1)")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "bench", help="for experts and results")
    parser.add_argument("--out", type=Path, help="for the table (default results/bench_merge)")
    for key in ("layers", "hidden", "wide", "rank", "experts"):
        parser.add_argument(f"--{key}", type=int, help=f"of the experts' shape (default {getattr(Shape, key)})")
    return parser.parse_args()


def main(description: str | None) -> None:
    asked = read_arguments(description)
    sizes = {key: getattr(asked, key) for key in asdict(Shape()) if getattr(asked, key) is not None}
    shape = Shape(**({"layers": 2} if asked.small else {}) | sizes)
    rows = choose_rows(asked.rows, asked.delta, asked.small)
    runs = asked.runs or (1 if asked.small else 3)
    if asked.small:  # minutes for each module
        rows = [replace(row, peft=None) if row.peft == "svd" else row for row in rows]
    out = asked.out or (REPOSITORY / "results" / "bench_merge" if shape == Shape() else asked.folder / "small")
    order, found, kept = [row.name for row in all_rows()], [], []
    for told in bench(shape, rows, asked.folder, runs, lambda text: print(text, file=sys.stderr, flush=True)):
        found.append(told)
        kept = keep(out, asdict(shape), [told], order)
    print(table_of(asdict(shape), kept))
    print(f"saved as {out}/table.md and table.json")
    if failed := [row["name"] for row in found if "failed" in row]:
        raise UserError(f"these rows failed, see above: {'; '.join(failed)}")
