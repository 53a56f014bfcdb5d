"""Tables of the general benchmarks: the scores from lmms-eval's answers, the paper's values, and notes on both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eval.general.lmms_results import GeneralResult
from eval.report.published import published_general_table
from eval.report.results import Context
from eval.report.tables import Cell, Column, Row, Table, format_interval
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


def general_tables(context: Context) -> dict[str, Table]:
    """The measured and the published table, by name; none where no general benchmark was evaluated."""
    table = general_table(context.general, context.bootstrap)
    if table is None:
        return {}
    titles = {result.name: result.title for result in context.general if result.name}
    return {"general": table, "general_published": published_general_table(context.published, titles)}
