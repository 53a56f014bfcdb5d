"""The benchmark of merging: every row in a fresh process, compared with a lower bound and PEFT."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.tools.bench.experts import Shape, find_experts
from pipeline.tools.bench.merging_rows import BOUND, SMALL, MergingRow, list_rows
from pipeline.tools.bench.processes import read_once, run_together
from pipeline.tools.bench.rounds import (
    Series,
    describe_machine,
    format_commit,
    format_machine,
    run_rounds,
    save,
)
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError, suggest
from robustmerge.stage.tables import format_markdown

LONG = 60.0  # seconds above which one run says enough
PACKAGES = ("torch", "numpy", "safetensors", "peft")
TITLES = ("method", "CPU s", "wall s", "memory MB", "of the bound", "of peft")
MISSING = "—"


def bench(shape: Shape, rows: Sequence[MergingRow], folder: Path, runs: int) -> Iterator[list[dict[str, Any]]]:
    """Measure the rows; yields them after every round. folder: for experts and what is merged.

    What every number is compared with is measured first: a process that does nothing, the bound, and peft, which
    takes minutes a module for svd, so that it runs that once.
    """
    folders = find_experts(folder, shape)
    read_once(folders)
    machine, experts = describe_machine(PACKAGES), [str(expert) for expert in folders]
    idle = Series("a process that merges nothing", partial(_measure, "do_nothing"))
    bound = Series(BOUND, partial(_measure, "sum_files", experts=experts))
    list(run_rounds([idle, bound], 2 * runs - 1))  # these two are in every number
    modules = list(shape.one_of_each().values())
    peft = {kind: Series(f"peft, {kind}", partial(
        _measure, "merge_with_peft", experts=experts, kind=kind, modules=modules, rank=shape.rank,
        repeats=1 if kind == "svd" else runs,
    )) for kind in dict.fromkeys(row.peft for row in rows) if kind}  # fmt: skip
    list(run_rounds(list(peft.values()), 1))
    series = [Series(row.name, partial(_merge, row, experts, folder)) for row in rows if row.name != BOUND]
    by_name = {one.name: one for one in [bound, *series]}
    for _ in run_rounds(series, runs, repeat_below=LONG):
        yield [{"name": row.name, "made": machine} | _as_row(row, by_name[row.name], idle, bound, peft) for row in rows]


def _measure(function: str, **values: Any) -> dict[str, Any]:
    (cost,) = run_together(f"pipeline.tools.bench.merging_work:{function}", [values])
    return asdict(cost)


def _merge(row: MergingRow, experts: list[str], folder: Path) -> dict[str, Any]:
    merged = Path(tempfile.mkdtemp(prefix="merged-", dir=folder))
    settings = {key: getattr(row, key) for key in ("method", "changes", "workers", "as_stage")}
    try:
        return _measure("merge", experts=experts, out=str(merged / "out"), **settings)
    finally:
        shutil.rmtree(merged)


def _as_row(row: MergingRow, series: Series, idle: Series, bound: Series, peft: dict[str, Series]) -> dict[str, Any]:
    """The row of table.json: median seconds, largest memory; or why it failed."""
    used = [idle, bound, series, *([peft[row.peft]] if row.peft else [])]
    if failures := [one.failed for one in used if one.failed]:
        return {"failed": failures[0]}
    cost = {key: series.median(key) - idle.median(key) for key in ("cpu", "wall")}
    cost |= {"private": max(series.values("private")), "bound": bound.median("cpu") - idle.median("cpu")}
    answer = {"peft": {"kind": row.peft, **peft[row.peft].values("answer")[0]}} if row.peft else {}
    return {**cost, "workers": row.workers, "changes": row.changes, **answer}


def update_table(folder: Path, shape: dict[str, int], measured: Sequence[dict[str, Any]]) -> tuple[list[dict], str]:
    """Write table.json and table.md; returns all rows and the Markdown. A row not measured again stays as it was.

    One that fails keeps the numbers it has, and notes the failure. Rows of other shapes of experts are dropped.
    """
    file = folder / "table.json"
    saved: dict[str, Any] = read_json(file, "a table of bench_merge.py") if file.exists() else {}
    rows = {row["name"]: row for row in saved.get("rows", []) if saved.get("shape") == shape}
    rows |= {row["name"]: _replace(rows.get(row["name"]), row) for row in measured}
    order = [row.name for row in list_rows()]
    in_order = sorted(rows.values(), key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    markdown = format_table(shape, in_order)
    save(folder, {"shape": shape, "rows": in_order}, markdown)
    return in_order, markdown


def _replace(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """Replace a row by its new measurement; the old numbers stay if that failed."""
    if before is None or "cpu" not in before or "failed" not in row:
        return row
    return {**before, "failed": row["failed"], "failed_on": row["made"]}


def format_table(shape: dict[str, int], rows: Sequence[dict[str, Any]]) -> str:
    """Format the table with its explanations."""
    about = (
        f"{shape['experts']} experts, {shape['layers']} layers of 7 modules, width {shape['hidden']} and "
        f"{shape['wide']}, rank {shape['rank']}, float16. CPU s: user and system seconds of a fresh process with its "
        "threads, less those of one that imports the same and merges nothing; wall s: likewise; medians. One thread "
        "of torch; what is read is in the page cache, what is merged is written. Memory: the most the process held of "
        f"its own (RssAnon), libraries included. Of the bound: against the row `{BOUND}` (read every file once, add "
        "up in float32, write nothing). Of peft: against `add_weighted_adapter` of the kind named, measured on one "
        "module of each size and multiplied by how many there are.\n"
    )
    return f"{format_markdown(TITLES, map(_cells, rows))}\n\n{about}{_machines(rows)}{_failures(rows)}"


def _cells(row: dict[str, Any]) -> list[str]:
    if "cpu" not in row:
        return [row["name"], "failed", *[MISSING] * 4]
    peft = row.get("peft")
    against = f"{row['cpu'] / peft['cpu']:.2g} of {peft['cpu']:.3g} s ({peft['kind']})" if peft else MISSING
    bound = f"{row['cpu'] / row['bound']:.1f}" if row["bound"] > 0 else MISSING
    name = row["name"] + (" (older: failed since)" if "failed" in row else "")
    return [name, f"{row['cpu']:.2f}", f"{row['wall']:.2f}", f"{row['private']:.0f}", bound, against]


def _machines(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every machine and commit that rows were measured on."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(format_machine(row["made"]), []).append(f"`{row['name']}`")
    if len(names) == 1:
        return f"\nMeasured on {next(iter(names))}.\n"
    return "".join(f"\n{', '.join(of_machine)}: on {machine}.\n" for machine, of_machine in names.items())


def _failures(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every row that failed when it was last measured."""
    return "".join(
        f"\n`{row['name']}` failed on {format_commit(row.get('failed_on', row['made']))}: {row['failed']}\n"
        for row in rows
        if "failed" in row
    )


def choose_rows(names: Sequence[str] | None, delta: bool, small: bool = False) -> list[MergingRow]:
    """The rows whose names begin with one of `names`; without names all, or those of a quick run.

    Raises UserError for a name that begins none.
    """
    rows = [row for row in list_rows() if delta or not row.by_hand]
    if names is None:
        return [row for row in rows if row.name in SMALL] if small else rows
    for name in names:
        if not any(row.name.startswith(name) for row in rows):
            raise UserError(f"no row begins with '{name}'; {suggest(name, [row.name for row in rows])} (--rows)")
    return [row for row in rows if row.name.startswith(tuple(names))]


def read_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick run: two layers, few rows, one round")
    parser.add_argument("--delta", action="store_true", help="also the rows that take long and much disk")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only the rows whose names begin with one of these")
    parser.add_argument("--runs", type=int, help="of each row, whose median counts (default 3; of a quick run 1)")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "bench", help="for experts and results")
    parser.add_argument("--out", type=Path, help="for the table (default results/bench_merge)")
    for key in ("layers", "hidden", "wide", "rank", "experts"):
        parser.add_argument(f"--{key}", type=int, help=f"of the experts' shape (default {getattr(Shape, key)})")
    return parser.parse_args()


def main(description: str | None) -> None:
    arguments = read_arguments(description)
    sizes = {key: getattr(arguments, key) for key in asdict(Shape()) if getattr(arguments, key) is not None}
    shape = Shape(**({"layers": 2} if arguments.small else {}) | sizes)
    rows = choose_rows(arguments.rows, arguments.delta, arguments.small)
    runs = arguments.runs or (1 if arguments.small else 3)
    if arguments.small:  # minutes for each module
        rows = [replace(row, peft=None) if row.peft == "svd" else row for row in rows]
    results = REPOSITORY / "results" / "bench_merge"
    out = arguments.out or (results if shape == Shape() else arguments.folder / "small")
    measured: list[dict[str, Any]] = []
    for measured in bench(shape, rows, arguments.folder, runs):
        _, markdown = update_table(out, asdict(shape), measured)
    print(f"{markdown}\nsaved as {out}/table.md and table.json")
    if failed := [row["name"] for row in measured if "failed" in row]:
        raise UserError(f"these rows failed, see above: {'; '.join(failed)}")
