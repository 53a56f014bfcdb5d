"""Tables beside the main one: the other protocol, how many answers counted, and the parts of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from eval.report.estimates import Estimates
from eval.report.results import Context, ResultGroup
from eval.report.tables import Cell, Column, Row, Table, main_table, make_row
from eval.settings import Task, other_protocol
from robustmerge.stage.records import Score

COUNTED = ("expected", "scored", "empty", "unparsed", "failed")
PART_TITLES = {"meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "mean_iou": "Mean IoU"}
BUILTIN = "_builtin"  # ends the name of a caption score whose words our own tokenizer split


def under_other_protocol(rows: Sequence[ResultGroup]) -> list[ResultGroup]:
    """The same rows with their scores under the other protocol."""
    return [replace(row, points=tuple(replace(p, scores=p.also, also={}) for p in row.points)) for row in rows]


def has_scores(rows: Sequence[ResultGroup]) -> bool:
    """Whether any row has any score."""
    return any(point.scores for row in rows for point in row.points)


def further_tables(rows: Sequence[ResultGroup], context: Context) -> dict[str, Table]:
    """Those of them that there is something to show in, by name."""
    others = under_other_protocol(rows)
    made = [counts_table(rows, context), parts_table(rows, context, "parts", context.protocol)]
    if has_scores(others):
        other = other_protocol(context.protocol)
        estimates = Estimates(others, [task.name for task in context.tasks], context.bootstrap)
        made.append(main_table(others, context, estimates, "other_protocol", other))
        made.append(parts_table(others, context, "other_parts", other))
    return {table.name: table for table in made if table is not None}


def list_scores(row: ResultGroup, task: Task) -> list[Score]:
    """Of every seed that has one."""
    return [point.scores[task.name] for point in row.points if task.name in point.scores]


def counts_table(rows: Sequence[ResultGroup], context: Context) -> Table:
    """A line a source, protocol and task: the mean score, and the number of questions by how their answers counted.

    Counts are sums over the seeds.
    """
    heads = [Column(key, key.capitalize(), (), "", is_text=True) for key in ("protocol", "task")]
    heads += [Column("score", "Score", (), ""), *(Column(f"n_{kind}", kind.capitalize(), (), "") for kind in COUNTED)]
    filled = []
    for row, also in zip(rows, under_other_protocol(rows), strict=True):
        filled += _count(row, context.protocol, context)
        filled += _count(also, other_protocol(context.protocol), context)
    title = "How the answers counted: numbers of questions, over all seeds"
    return Table("counts", title, tuple(heads), tuple(filled), bars=False)


def _count(row: ResultGroup, protocol: str, context: Context) -> Iterator[Row]:
    for task in context.tasks:
        scores = list_scores(row, task)
        if scores:
            counts = [sum(getattr(score, f"n_{kind}") for score in scores) for kind in COUNTED]
            words = [Cell(protocol), Cell(task.name), _mean_cell([score.value for score in scores])]
            yield make_row(row, [*words, *(Cell(str(count), count) for count in counts)])


def _mean_cell(values: Sequence[float | None]) -> Cell:
    """Their mean; nothing if one is missing."""
    if not values or None in values:
        return Cell()
    return Cell(f"{fmean(values):.1f}", fmean(values))


def parts_table(rows: Sequence[ResultGroup], context: Context, name: str, protocol: str) -> Table | None:
    """The further figures that scores come with, means over seeds; None if there are none."""
    columns = []
    for task in context.tasks:
        names = dict.fromkeys(part for row in rows for score in list_scores(row, task) for part in score.parts)
        columns += [Column(f"{task.name}_{part}", title_of_part(part), (task.name,), task.title) for part in names]
    if not columns:
        return None
    tasks = {task.name: task for task in context.tasks}
    filled = [make_row(row, [_part_cell(row, tasks, column) for column in columns]) for row in rows]
    title = f"Further figures of the {protocol} protocol, in %"
    return Table(name, title, tuple(columns), tuple(filled), bars=False)


def _part_cell(row: ResultGroup, tasks: Mapping[str, Task], column: Column) -> Cell:
    (name,) = column.tasks
    part = column.key.removeprefix(f"{name}_")
    return _mean_cell([score.parts.get(part) for score in list_scores(row, tasks[name])])


def title_of_part(part: str) -> str:
    """`bleu_4_builtin` -> `BLEU-4, own words`."""
    name = part.removesuffix(BUILTIN)
    title = name.replace("_", "-").upper() if name.startswith("bleu_") else name.replace("_", " ").capitalize()
    return PART_TITLES.get(name, title) + (", own words" if part.endswith(BUILTIN) else "")
