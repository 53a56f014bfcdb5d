"""From scores to tables: the main one, and the averages of every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval.report.estimates import Estimates
from eval.report.results import CHOSEN, Context, ResultGroup, list_seeds
from eval.statistics import Interval

MISSING = "—"
REFERENCES = ("zero_shot", "individual", "multi_task")


@dataclass(frozen=True)
class Column:
    """tasks: whose mean it shows. group: heading above it (`Seen tasks`, `Unseen tasks`). is_text: it holds words."""

    key: str
    title: str
    tasks: tuple[str, ...]
    group: str
    is_average: bool = False
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """text: as printed; the numbers are None where a value is missing. value: an integer if it is a count.

    low, high, p: over questions; deviation, seeds_low, seeds_high: over training seeds.
    """

    text: str = MISSING
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    deviation: float | None = None
    seeds_low: float | None = None
    seeds_high: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """kind: as in SourceResult, or `published`; it separates the references from the merged models.

    label: the title without what block (see ResultGroup) and facet say, by which a source looks the same in every part
    of a figure. facet: the part that it stands in, "" for all. chosen: at the strength chosen on `val`.
    """

    title: str
    kind: str
    cells: tuple[Cell, ...]
    label: str = ""
    block: str = ""
    facet: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Table:
    """name: of its files. head: of the first column. bars: whether a bar shows a value 0..100 on the page."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    head: str = "Source"
    bars: bool = True


def make_row(row: ResultGroup, cells: Sequence[Cell]) -> Row:
    """The row of a source in any table."""
    point = row.first
    return Row(row.title, row.kind, tuple(cells), row.label, row.block, point.facet, point.variant == CHOSEN)


def list_columns(context: Context) -> tuple[Column, ...]:
    """Seen tasks, their average, unseen tasks, their average: as in table 2 of the paper."""
    columns: list[Column] = []
    for group, tasks in (("Seen", context.seen), ("Unseen", context.unseen)):
        heading = f"{group} tasks"
        columns += [Column(task.name, task.title, (task.name,), heading) for task in tasks]
        if tasks:
            names = tuple(task.name for task in tasks)
            columns.append(Column(f"{group.lower()}_avg", f"{group} avg", names, heading, is_average=True))
    return tuple(columns)


def list_averages(context: Context) -> tuple[Column, ...]:
    """The columns of the averages."""
    return tuple(column for column in list_columns(context) if column.is_average)


def list_blocks(rows: Sequence[ResultGroup]) -> dict[str, list[ResultGroup]]:
    """The merged models that are compared with each other, by the heading of their block."""
    blocks: dict[str, list[ResultGroup]] = {}
    for row in rows:
        if row.kind == "merged":
            blocks.setdefault(row.block, []).append(row)
    return blocks


def main_table(
    rows: Sequence[ResultGroup], context: Context, estimates: Estimates, name: str = "main", protocol: str = ""
) -> Table:
    """Scores in per cent, means over seeds; averages with 95 % intervals and the deviation over seeds.

    name: of its files. protocol: that the title names.

    The best merged value of a column, in its block, is bold only if the 95 % intervals of its paired difference to
    the second best leave out zero; between two equal best values none is bold.
    """
    columns = list_columns(context)
    filled = {row.key: make_row(row, [_cell(row, column, estimates) for column in columns]) for row in rows}
    for block in list_blocks(rows).values():
        for index, column in enumerate(columns):
            best = _clear_best(block, column, estimates)
            if best is not None:
                filled[best] = _embolden(filled[best], index)
    under = f", {protocol} protocol" if protocol else ""
    title = f"{context.benchmark}, {context.model}{under}: scores in %, averages with 95 % intervals"
    if len(list_seeds(rows)) > 1:
        title += f" over questions ± deviation over {len(list_seeds(rows))} seeds"
    return Table(name, title, columns, tuple(filled.values()))


def _cell(row: ResultGroup, column: Column, estimates: Estimates) -> Cell:
    if not estimates.has(row.key, column.tasks):
        return Cell()
    found = estimates.interval(row.key, column.tasks)
    text = f"{found.value:.1f}"
    if column.is_average:
        text = format_interval(found)
    return Cell(text, found.value, found.low, found.high, deviation=found.seeds.deviation if found.seeds else None)


def format_interval(found: Interval) -> str:
    """`43.2 (42.8–43.6)`, with several seeds ` ± 1.1` behind it."""
    return f"{found.value:.1f} ({found.low:.1f}–{found.high:.1f})" + (
        f" ± {found.seeds.deviation:.1f}" if found.seeds else ""
    )


def rank_merged(rows: Sequence[ResultGroup], column: Column, estimates: Estimates) -> list[ResultGroup]:
    """The merged rows that have a value in this column, best first."""
    able = [row for row in rows if row.kind == "merged" and estimates.has(row.key, column.tasks)]
    return sorted(able, key=lambda row: -estimates.interval(row.key, column.tasks).value)


def _clear_best(block: Sequence[ResultGroup], column: Column, estimates: Estimates) -> str | None:
    ranked = rank_merged(block, column, estimates)
    if len(ranked) < 2:
        return None
    first, second = (row.key for row in ranked[:2])
    found = estimates.difference(first, second, column.tasks)
    return (
        first if found.is_significant and found.value > 0 else None
    )  # below 0: ahead by seeds that the second lacks only


def _embolden(row: Row, index: int) -> Row:
    cells = list(row.cells)
    cells[index] = replace(cells[index], bold=True)
    return replace(row, cells=tuple(cells))


def seeds_table(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """Seen and unseen average of every row for each seed, with mean and deviation; None for a single seed."""
    seeds = list_seeds(rows)
    if len(seeds) < 2:
        return None
    columns: list[Column] = []
    for average in list_averages(context):
        keys = [(f"seed_{seed}", f"Seed {seed}") for seed in seeds] + [("mean", "Mean"), ("deviation", "±")]
        short = average.key.removesuffix("_avg")
        group = average.title.replace("avg", "average")
        columns += [Column(f"{short}_{key}", name, average.tasks, group, key == "mean") for key, name in keys]
    filled = []
    for row in rows:
        filled.append(make_row(row, [c for a in list_averages(context) for c in _by_seed(row, a, seeds, estimates)]))
    return Table("seeds", "Averages of every training seed, in %", tuple(columns), tuple(filled), bars=False)


def _by_seed(row: ResultGroup, column: Column, seeds: Sequence[int], estimates: Estimates) -> list[Cell]:
    if not estimates.has(row.key, column.tasks):
        return [Cell()] * (len(seeds) + 2)
    values = estimates.by_seed(row.key, column.tasks)
    found = estimates.interval(row.key, column.tasks)
    shown = [values.get(seed) for seed in seeds] + [found.value, found.seeds.deviation if found.seeds else None]
    return [Cell() if value is None else Cell(f"{value:.1f}", value) for value in shown]
