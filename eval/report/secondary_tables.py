"""The secondary tables: how the answers counted, the parts of scores, and the scores under the other protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from eval.report.estimates import Estimates
from eval.report.results import Context, ResultGroup, list_scores
from eval.report.tables import Cell, Column, Row, Table, main_table, make_row
from eval.settings import BUILTIN_SUFFIX, Task

COUNTED = ("expected", "scored", "empty", "unparsed", "failed")
PART_TITLES = {
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "mean_iou": "Mean IoU",
    "top_3": "Top 3",
    "top_5": "Top 5",
}
PART_TITLES |= {f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)}


def under_other_protocol(groups: Sequence[ResultGroup]) -> list[ResultGroup]:
    """The same groups with their scores under the other protocol."""
    return [
        replace(group, results=tuple(replace(one, scores=one.other_scores, other_scores={}) for one in group.results))
        for group in groups
    ]


def has_scores(groups: Sequence[ResultGroup]) -> bool:
    """Whether any group has any score."""
    return any(result.scores for group in groups for result in group.results)


def further_tables(groups: Sequence[ResultGroup], context: Context) -> dict[str, Table]:
    """Build the secondary tables, by name; those without a row are left out."""
    others = under_other_protocol(groups)
    tables = [counts_table(groups, context), parts_table(groups, context, "parts", context.protocol)]
    if has_scores(others):
        protocol = context.other_protocol
        estimates = Estimates(others, [task.name for task in context.tasks], context.bootstrap)
        tables.append(main_table(others, context, estimates, "other_protocol", protocol))
        tables.append(parts_table(others, context, "other_parts", protocol))
    return {table.name: table for table in tables if table is not None}


def counts_table(groups: Sequence[ResultGroup], context: Context) -> Table:
    """How the answers counted: for each source, protocol and task the mean score and the number of answers by outcome.

    Counts are sums over the seeds.
    """
    columns = [Column(key, key.capitalize(), is_text=True) for key in ("protocol", "task")]
    columns += [Column("score", "Score"), *(Column(f"n_{state}", state.capitalize()) for state in COUNTED)]
    rows: list[Row] = []
    for group, other in zip(groups, under_other_protocol(groups), strict=True):
        rows += _list_counts(group, context.protocol, context)
        rows += _list_counts(other, context.other_protocol, context)
    title = "How the answers counted: numbers of questions, over all seeds"
    return Table("counts", title, tuple(columns), tuple(rows), bars=False)


def _list_counts(group: ResultGroup, protocol: str, context: Context) -> Iterator[Row]:
    for task in context.tasks:
        scores = list_scores(group, task)
        if scores:
            counts = [sum(getattr(score, f"n_{state}") for score in scores) for state in COUNTED]
            cells = [Cell(protocol), Cell(task.name), _mean_cell([score.value for score in scores])]
            yield make_row(group, [*cells, *(Cell(str(count), count) for count in counts)])


def _mean_cell(values: Sequence[float | None]) -> Cell:
    """The mean of the values; a missing cell if one of them is missing."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return Cell()
    return Cell(f"{fmean(present):.1f}", fmean(present))


def parts_table(groups: Sequence[ResultGroup], context: Context, name: str, protocol: str) -> Table | None:
    """The parts of scores (the further figures that come with them), as means over seeds; None if there are none."""
    columns: list[Column] = []
    for task in context.tasks:
        parts = dict.fromkeys(part for group in groups for score in list_scores(group, task) for part in score.parts)
        columns += [
            Column(f"{task.name}_{part}", format_part(part), (task.name,), task.title, part=part) for part in parts
        ]
    if not columns:
        return None
    tasks = {task.name: task for task in context.tasks}
    rows = [make_row(group, [part_cell(group, tasks, column) for column in columns]) for group in groups]
    title = f"Further figures of the {protocol} protocol, in %"
    title += ", points as such" if any(column.part == "points" for column in columns) else ""
    return Table(name, title, tuple(columns), tuple(rows), bars=False)


def part_cell(group: ResultGroup, tasks: Mapping[str, Task], column: Column) -> Cell:
    """The mean over seeds of a part of a score."""
    (name,) = column.tasks
    return _mean_cell([score.parts.get(column.part) for score in list_scores(group, tasks[name])])


def format_part(part: str) -> str:
    """The title of a part: `bleu_4_builtin` -> `BLEU-4, own words`."""
    name = part.removesuffix(BUILTIN_SUFFIX)
    title = PART_TITLES.get(name, name[:1].upper() + name[1:].replace("_plus", "+").replace("_", " "))
    return title + (", own words" if part.endswith(BUILTIN_SUFFIX) else "")
