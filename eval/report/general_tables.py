"""Tables of the general benchmarks: scores from lmms-eval's answers, of drawn questions, the paper's values; notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eval.general.lmms_results import GeneralResult
from eval.report.estimates import Estimates
from eval.report.published import name_rows, published_general_table
from eval.report.results import Context, ResultGroup
from eval.report.secondary_tables import part_cell
from eval.report.tables import Cell, Column, Row, Table, format_interval, make_row
from eval.settings import Bootstrap
from eval.statistics import estimate_interval, resample_scores
from robustmerge.stage.records import Score

NOTES = {
    "pope_f1": (
        "POPE: F1 of \"yes\" as lmms-eval has it (an answer that is neither yes nor no counts nowhere), and accuracy "
        "(such an answer is wrong). The paper does not say which of the two its POPE figure is, nor over which of the "
        "three question sets; LLaVA reports F1, and lmms-eval's pope pools them. Questions that share a picture "
        "are drawn apart, as lmms-eval's files do not name it: the intervals are somewhat too narrow."
    ),
    "mme_perception": "MME: points of perception, at most 2000; resampled by picture, within the ten categories.",
    "mmbench_circular": (
        "MMBench: dev set, a question counts if it is right in every order of its options; answers are read by "
        "lmms-eval's rules (mmbench_en_dev_static). The published script writes a submission for the benchmark's "
        "server instead, which asks a language model about answers that it cannot read."
    ),
}  # fmt: skip

# Of a metric of general tasks: what its value is called, and the part that stands beside it.
FIGURES = {"f1_of_yes": ("F1", "accuracy"), "accuracy_plus": ("in %", "points"), "circular": ("circular", "accuracy")}
DRAWN_NOTE = (
    "Questions drawn here by the rules of the benchmarks that they are named after (docs/general.md), not these "
    'themselves: no value compares with a published one. POPE-like: F1 of "yes", where an answer that is neither yes '
    "nor no is wrong. MME-like: 200 points a subtask, for accuracy and for pictures with both questions right. "
    "MMBench-like: a question counts if it is right in every rotation of its options. Resampled by picture."
)


def general_table(results: Sequence[GeneralResult], bootstrap: Bootstrap | None = None) -> Table | None:
    """The table of general scores, with 95 % intervals where the answers give one; None without any score."""
    tasks = dict.fromkeys(task for result in results for task in result.scores)
    if not tasks:
        return None
    columns: list[Column] = []
    for task in tasks:
        if any(result.scores[task].metric == "pope_f1" for result in results if task in result.scores):
            columns.append(Column(f"{task} F1", f"{task} F1", (task,)))
            columns.append(Column(f"{task} accuracy", f"{task} accuracy", (task,), part="accuracy"))
        else:
            columns.append(Column(task, task, (task,)))
    rows = [
        Row(
            result.title, result.kind, tuple(_make_cell(result, column, bootstrap or Bootstrap()) for column in columns)
        )
        for result in results
    ]
    title = "General benchmarks, by lmms-eval; in %, MME in points"
    return Table("general", title, tuple(columns), tuple(rows), bars=False)


def _make_cell(result: GeneralResult, column: Column, bootstrap: Bootstrap) -> Cell:
    score = result.scores.get(column.tasks[0])
    if score is None:
        return Cell()
    if column.part and score.metric == "pope_f1":
        score = dataclasses.replace(score, value=score.parts[column.part], aggregate="mean", statistics={})
    return _score_cell(score, bootstrap)


def _score_cell(score: Score, bootstrap: Bootstrap) -> Cell:
    """A general score as a cell, with its interval where the answers give one."""
    if score.value is None:
        return Cell()
    if not score.values:
        return Cell(f"{score.value:.1f}", score.value)
    draws = resample_scores([score], list(score.values), score.task, bootstrap)[:, 0]
    mean = estimate_interval(score.value / 100, draws)
    return Cell(format_interval(mean), mean.value, mean.low, mean.high)


def general_notes(results: Sequence[GeneralResult]) -> list[str]:
    """Notes on the general scores shown; partial evaluations first."""
    scores = [(task, score) for result in results for task, score in result.scores.items()]
    partial = {
        task: f"asked only {score.n_expected:,} of {score.n_asked:,} questions: a partial evaluation, not a result"
        for task, score in scores
        if score.n_asked
    }
    metrics = dict.fromkeys(score.metric for _, score in scores)
    reasons = {f"{task}: {score.reason}." for task, score in scores if score.reason}
    counts = [
        f"{result.title}, {task}: of {s.n_expected:,} answers {s.n_empty:,} empty, {s.n_unparsed:,} of another form "
        f"than asked for, {s.n_failed:,} failed."
        for result in results
        for task, s in result.scores.items()
        if s.n_scored < s.n_expected
    ]
    notices = [f"{task}: {notice}." for task, notice in partial.items()]
    return [*notices, *(NOTES[metric] for metric in metrics if metric in NOTES), *sorted(reasons), *counts]


def drawn_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """The table of the general tasks that are asked here, a part beside each score; None without any score."""
    tasks = {task.name: task for task in context.general_tasks}
    columns: list[Column] = []
    for task in tasks.values():
        figure, part = FIGURES.get(task.metric, ("", ""))
        columns.append(Column(task.name, f"{task.title} {figure}".strip(), (task.name,)))
        if part:
            columns.append(Column(f"{task.name}_{part}", f"{task.title} {part}", (task.name,), part=part))

    def make_cell(group: ResultGroup, column: Column) -> Cell:
        if column.part:
            return part_cell(group, tasks, column)
        if not estimates.has(group.title, column.tasks):
            return Cell()
        mean = estimates.interval(group.title, column.tasks)
        return Cell(format_interval(mean), mean.value, mean.low, mean.high)

    rows = [make_row(group, [make_cell(group, column) for column in columns]) for group in groups]
    rows = [row for row in rows if any(cell.value is not None for cell in row.cells)]
    title = f"{', '.join(task.title for task in tasks.values())}: questions drawn here; in %, points as such"
    return Table("general_drawn", title, tuple(columns), tuple(rows), bars=False) if rows else None


def general_tables(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> dict[str, Table]:
    """The measured tables and the published one, by name; none where no general benchmark was evaluated."""
    made = (drawn_table(groups, context, estimates), general_table(context.general, context.bootstrap))
    tables = {table.name: table for table in made if table is not None}
    if not tables:
        return {}
    titles = name_rows(groups, context) | {result.name: result.title for result in context.general if result.name}
    return tables | {"general_published": published_general_table(context.published, titles)}
