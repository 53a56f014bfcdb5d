"""The tables of a report: cells, rows and columns, the main table, and the averages of every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval.report.estimates import Estimates
from eval.report.results import CHOSEN, Context, ResultGroup, list_blocks, list_seeds
from eval.statistics import Interval

MISSING = "—"
GENERAL = "General benchmarks"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    key: in CSV. tasks: whose mean it shows. heading: above it (`Seen tasks`). average_over: `seen` or
    `unseen` for an average, else "". part: the further figure of its task that it shows, if any. is_text: it holds
    words.
    """

    key: str
    title: str
    tasks: tuple[str, ...] = ()
    heading: str = ""
    average_over: str = ""
    part: str = ""
    is_text: bool = False

    @property
    def is_average(self) -> bool:
        return bool(self.average_over)


@dataclass(frozen=True)
class Cell:
    """A value with its noise. text: as printed; the numbers are None where a value is missing.

    value: an integer if it is a count. low, high, p: over questions; deviation, seeds_low, seeds_high: over training
    seeds.
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
    """A row of a table. kind: one of SOURCE_KINDS, or `published`, `published_reference`.

    label: the title without what block (see ResultGroup) and facet say, by which a source is drawn alike in every
    panel of a figure. facet: the panel that it stands in, "" for all. chosen: at the strength chosen on `val`.
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
    """A table of a report.

    name: of its files. head: title of the first column. bars: whether a bar shows a value 0..100 on the page.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    head: str = "Source"
    bars: bool = True


def make_row(group: ResultGroup, cells: Sequence[Cell]) -> Row:
    """The row of a result group in any table."""
    first = group.first
    return Row(group.title, group.kind, tuple(cells), group.label, group.block, first.facet, first.variant == CHOSEN)


def starts_block(rows: Sequence[Row], index: int) -> bool:
    """Whether a row is the first of a block, so that the heading stands above it."""
    return bool(rows[index].block) and (index == 0 or rows[index - 1].block != rows[index].block)


def list_columns(context: Context) -> tuple[Column, ...]:
    """Seen tasks, their average, unseen tasks, their average, as in table 2 of the paper; general tasks last."""
    columns: list[Column] = []
    for split, tasks in (("seen", context.seen), ("unseen", context.unseen)):
        heading = f"{split.capitalize()} tasks"
        columns += [Column(task.name, task.title, (task.name,), heading) for task in tasks]
        if tasks:
            names = tuple(task.name for task in tasks)
            columns.append(Column(f"{split}_avg", f"{split.capitalize()} avg", names, heading, average_over=split))
    columns += [Column(task.name, task.title, (task.name,), GENERAL) for task in context.general_tasks]
    return tuple(columns)


def list_averages(context: Context) -> tuple[Column, ...]:
    """The columns of the averages."""
    return tuple(column for column in list_columns(context) if column.is_average)


def main_table(
    groups: Sequence[ResultGroup], context: Context, estimates: Estimates, name: str = "main", protocol: str = ""
) -> Table:
    """Scores in per cent, means over seeds; averages with 95 % intervals and the deviation over seeds.

    name: of its files. protocol: that the title names.

    The best merged value of a column, in its block, is bold only if the 95 % intervals of its paired difference to
    the second best leave out zero; between two equal best values none is bold.
    """
    columns = list_columns(context)
    rows = {
        group.title: make_row(group, [_make_cell(group, column, estimates) for column in columns]) for group in groups
    }
    for block in list_blocks(groups).values():
        for index, column in enumerate(columns):
            best = find_clear_best(block, column, estimates)
            if best is not None:
                rows[best] = _embolden(rows[best], index)
    under = f", {protocol} protocol" if protocol else ""
    title = f"{context.benchmark}, {context.model}{under}: scores in %, averages with 95 % intervals"
    if len(list_seeds(groups)) > 1:
        title += f" over questions ± deviation over {len(list_seeds(groups))} seeds"
    return Table(name, title, columns, tuple(rows.values()))


def _make_cell(group: ResultGroup, column: Column, estimates: Estimates) -> Cell:
    if not estimates.has(group.title, column.tasks):
        return Cell()
    mean = estimates.interval(group.title, column.tasks)
    text = format_interval(mean) if column.is_average else f"{mean.value:.1f}"
    return Cell(text, mean.value, mean.low, mean.high, deviation=mean.seeds.deviation if mean.seeds else None)


def format_interval(mean: Interval) -> str:
    """A mean as `43.2 (42.8–43.6)`, with several seeds ` ± 1.1` behind it."""
    spread = f" ± {mean.seeds.deviation:.1f}" if mean.seeds else ""
    return f"{mean.value:.1f} ({mean.low:.1f}–{mean.high:.1f}){spread}"


def rank_merged(groups: Sequence[ResultGroup], column: Column, estimates: Estimates) -> list[ResultGroup]:
    """The merged models that have a value in this column, best first."""
    scored = [group for group in groups if group.kind == "merged" and estimates.has(group.title, column.tasks)]
    return sorted(scored, key=lambda group: -estimates.interval(group.title, column.tasks).value)


def find_clear_best(block: Sequence[ResultGroup], column: Column, estimates: Estimates) -> str | None:
    """The title of the best merged model, if its lead over the second best is outside the noise."""
    ranked = rank_merged(block, column, estimates)
    if len(ranked) < 2:
        return None
    first, second = (group.title for group in ranked[:2])
    lead = estimates.difference(first, second, column.tasks)
    # A lead below zero: the first has the higher mean only by seeds that the second lacks.
    return first if lead.is_significant and lead.value > 0 else None


def _embolden(row: Row, index: int) -> Row:
    cells = list(row.cells)
    cells[index] = replace(cells[index], bold=True)
    return replace(row, cells=tuple(cells))


def seeds_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """Seen and unseen average of every source for each seed, with mean and deviation; None for a single seed."""
    seeds = list_seeds(groups)
    if len(seeds) < 2:
        return None
    columns: list[Column] = []
    for average in list_averages(context):
        split, tasks = average.average_over, average.tasks
        heading = f"{split.capitalize()} average"
        columns += [Column(f"{split}_seed_{seed}", f"Seed {seed}", tasks, heading) for seed in seeds]
        columns.append(Column(f"{split}_mean", "Mean", tasks, heading, average_over=split))
        columns.append(Column(f"{split}_deviation", "±", tasks, heading))
    rows = []
    for group in groups:
        cells = [
            cell for average in list_averages(context) for cell in _list_seed_cells(group, average, seeds, estimates)
        ]
        rows.append(make_row(group, cells))
    return Table("seeds", "Averages of every training seed, in %", tuple(columns), tuple(rows), bars=False)


def _list_seed_cells(group: ResultGroup, column: Column, seeds: Sequence[int], estimates: Estimates) -> list[Cell]:
    """A cell a seed, then mean and deviation."""
    if not estimates.has(group.title, column.tasks):
        return [Cell()] * (len(seeds) + 2)
    by_seed = estimates.by_seed(group.title, column.tasks)
    mean = estimates.interval(group.title, column.tasks)
    values = [by_seed.get(seed) for seed in seeds] + [mean.value, mean.seeds.deviation if mean.seeds else None]
    return [Cell() if value is None else Cell(f"{value:.1f}", value) for value in values]
