"""From scores to tables: the main one, the paper's published one, and the differences between merged models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from eval.results import Context, SourceResult
from eval.statistics import Difference, Resampled
from robustmerge.settings import UserError

MISSING = "—"
REFERENCES = ("zero_shot", "individual", "multi_task")


@dataclass(frozen=True)
class Column:
    """tasks: whose mean it shows. group: heading above it (`Seen tasks`, `Unseen tasks`)."""

    key: str
    title: str
    tasks: tuple[str, ...]
    group: str
    is_average: bool = False


@dataclass(frozen=True)
class Cell:
    """text: as printed; the numbers are None where a value is missing."""

    text: str = MISSING
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """kind: as in SourceResult, or `published`; it separates the references from the merged models."""

    title: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """name: of its files. head: of the first column."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    head: str = "Source"


def resample(rows: Sequence[SourceResult], context: Context) -> Resampled:
    """The scores of all rows, resampled together, restricted to the report's tasks."""
    tasks = {task.name for task in context.tasks}
    scores = {row.key: {t: s for t, s in row.scores.items() if t in tasks} for row in rows}
    return Resampled(scores, context.bootstrap)


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


def main_table(rows: Sequence[SourceResult], context: Context, resampled: Resampled) -> Table:
    """Scores in per cent, averages with 95 % intervals.

    The best merged value of a column is bold only if the 95 % interval of its paired difference to the second best
    leaves out zero; between two equal best values none is bold.
    """
    columns = list_columns(context)
    filled = [Row(row.title, row.kind, tuple(_cell(row, column, resampled) for column in columns)) for row in rows]
    for index, column in enumerate(columns):
        best = _clear_best(rows, column, resampled)
        if best is not None:
            filled[best] = _embolden(filled[best], index)
    title = f"{context.benchmark}, {context.model}: scores in %, averages with 95 % intervals"
    return Table("main", title, columns, tuple(filled))


def _cell(row: SourceResult, column: Column, resampled: Resampled) -> Cell:
    if not resampled.has(row.key, column.tasks):
        return Cell()
    found = resampled.interval(row.key, column.tasks)
    text = f"{found.value:.1f}"
    if column.is_average:
        text += f" ({found.low:.1f}–{found.high:.1f})"
    return Cell(text, found.value, found.low, found.high)


def rank_merged(rows: Sequence[SourceResult], column: Column, resampled: Resampled) -> list[int]:
    """Indices of the merged rows that have a value in this column, best first."""
    able = [i for i, row in enumerate(rows) if row.kind == "merged" and resampled.has(row.key, column.tasks)]
    return sorted(able, key=lambda i: -resampled.interval(rows[i].key, column.tasks).value)


def _clear_best(rows: Sequence[SourceResult], column: Column, resampled: Resampled) -> int | None:
    ranked = rank_merged(rows, column, resampled)
    if len(ranked) < 2:
        return None
    first, second = (rows[index].key for index in ranked[:2])
    return ranked[0] if resampled.difference(first, second, column.tasks).is_clear else None


def _embolden(row: Row, index: int) -> Row:
    cells = list(row.cells)
    cells[index] = replace(cells[index], bold=True)
    return replace(row, cells=tuple(cells))


def difference_table(rows: Sequence[SourceResult], context: Context, resampled: Resampled) -> Table | None:
    """The best merged model of each average against every other one; None if no average has two of them."""
    merged = [row for row in rows if row.kind == "merged"]
    every = tuple(column for column in list_columns(context) if column.is_average)
    ranked = {column.key: [merged[i].key for i in rank_merged(merged, column, resampled)] for column in every}
    averages = tuple(column for column in every if len(ranked[column.key]) > 1)
    if not averages:
        return None
    filled = [
        Row(row.title, row.kind, tuple(_against_best(row, c, ranked[c.key], resampled) for c in averages))
        for row in merged
    ]
    title = "Merged models against the best one of each average: paired difference with 95 % interval, two-sided p"
    return Table("differences", title, averages, tuple(filled))


def _against_best(row: SourceResult, column: Column, ranked: Sequence[str], resampled: Resampled) -> Cell:
    if row.key not in ranked:
        return Cell()
    if row.key == ranked[0]:
        return Cell("best")
    found = resampled.difference(row.key, ranked[0], column.tasks)
    return Cell(show_difference(found), found.value, found.low, found.high, found.p)


def show_difference(found: Difference) -> str:
    """`-1.2 (-2.0 to -0.4), p = 0.004`, with the signs that print well."""
    numbers = f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f}), p = {found.p:.3f}"
    return numbers.replace("-", "−").replace("p = 0.000", "p < 0.001")


def read_published(path: Path) -> dict[str, Any]:
    """The file of published values. Raises UserError if it is not one."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {**found["table_2_mm_mergebench"], "url": found["paper"]["url"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of published values: {error!r}") from error


def published_table(rows: Sequence[SourceResult], context: Context) -> Table:
    """The paper's table 2 for the tasks of this report, and a row for each method of ours that it lacks.

    Averages are the printed ones; they are shown only if the report has all the tasks that they are over.
    """
    published = read_published(context.published)
    columns = list_columns(context)
    titles = {_published_name(row): row.title.partition(" (")[0] for row in rows if row.kind != "adapter"}
    filled = []
    for name in sorted(dict.fromkeys([*REFERENCES, *published["rows"], *titles]), key="robustmerge".__eq__):
        values = _published_values(published, name)
        cells = tuple(_published_cell(values, column, published) for column in columns)
        filled.append(Row(titles.get(name, _titled(name)), _published_kind(name), cells))
    title = "Published values (table 2 of the paper; LLaVA-1.5-7B, its own data), in %: not measured here"
    return Table("published", title, columns, tuple(filled))


def _published_name(row: SourceResult) -> str:
    return row.name if row.kind == "merged" else row.kind


def _published_kind(name: str) -> str:
    return "published_reference" if name in REFERENCES else "published"


def _titled(name: str) -> str:
    known = {
        "dare": "DARE",
        "ties": "TIES",
        "pcb": "PCB",
        "zero_shot": "Zero-shot",
        "multi_task": "Multi-task",
    }
    return known.get(name, "RobustMerge" if name == "robustmerge" else name.replace("_", " ").title())


def _published_values(published: Mapping[str, Any], name: str) -> dict[str, float]:
    """By task name; the averages as `seen_avg` and `unseen_avg`."""
    row = published["rows"].get(name, {})
    values = {key: row[key] for key in ("seen_avg", "unseen_avg") if key in row}
    for group in ("seen", "unseen"):
        values.update(zip(published[group], row.get(group, ()), strict=False))
    return values


def _published_cell(values: Mapping[str, float], column: Column, published: Mapping[str, Any]) -> Cell:
    whole = set(published[column.key.removesuffix("_avg")]) == set(column.tasks) if column.is_average else True
    value = values.get(column.key) if whole else None
    return Cell() if value is None else Cell(f"{value:.2f}", value)
