"""Synthetic scores, results and a context that the tests of tables and reports share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from eval.results import Context, SourceResult, arrange_rows
from eval.settings import Bootstrap, Task
from eval.tables import main_table, published_table, resample
from robustmerge.records import Example, Prediction, Score, write_examples, write_predictions

REPOSITORY = Path(__file__).resolve().parent.parent
PAPER_URL = "https://arxiv.org/abs/2502.17159"
N = 120


def make_task(name: str, title: str, seen: bool) -> Task:
    return Task(name, title, seen, "{text}", 8, "text", "exact_match")


TASKS = (make_task("vqav2", "VQAv2", True), make_task("rec", "REC", True), make_task("aokvqa", "AOKVQA", False))


def make_score(task: str, right: int, **counts: int) -> Score:
    """The first `right` of N questions are right."""
    values = {f"{task}-{i}": float(i < right) for i in range(N)}
    known = {"n_empty": 0, "n_unparsed": 0, "n_failed": 0, **counts}
    return Score(task, "exact_match", 100 * right / N, N, N - sum(known.values()), **known, values=values)


def make_result(source: str, kind: str, title: str, right: dict[str, int], **more) -> SourceResult:
    scores = {task: make_score(task, count) for task, count in right.items()}
    return SourceResult(source, kind, title, scores, address=f"{source}-1a2b3c4d", **more)


def make_results() -> list[SourceResult]:
    return [
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 80, "rec": 60, "aokvqa": 50}),
        make_result("merged/mine", "merged", "Mine", {"vqav2": 60, "rec": 60, "aokvqa": 49}),
        make_result("merged/task_arithmetic", "merged", "Task Arithmetic", {"vqav2": 50, "rec": 59, "aokvqa": 40}),
        make_result("multi_task", "multi_task", "Multi-task", {"vqav2": 90, "rec": 80, "aokvqa": 60}),
        make_result("expert/vqav2", "expert", "VQAv2 expert", {"vqav2": 100, "rec": 1}),
        make_result("expert/rec", "expert", "REC expert", {"rec": 90}),
        make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 20, "rec": 30, "aokvqa": 40}),
    ]


@pytest.fixture
def context(tmp_path) -> Context:
    questions = {}
    for task in TASKS:
        folder = tmp_path / "data" / task.name
        folder.mkdir(parents=True)
        image.imsave(folder / "0.png", np.full((2, 3, 3), 0.5))
        image.imsave(folder / "big.png", np.full((500, 3, 3), 0.5))
        pictures = [None, "0.png", "big.png", "gone.png"]
        examples = [
            Example(f"{task.name}-{i}", f"What | is <{i}>?", "red", image=pictures[i % 4], choices=("red", "blue"))
            for i in range(N)
        ]
        questions[task.name] = folder / "test.jsonl"
        write_examples(questions[task.name], examples)
    return Context(
        name="main",
        benchmark="mini",
        model="tiny",
        profile="full",
        tasks=TASKS,
        questions=questions,
        seeds={"data": 0, "training": 7},
        command="bash scripts/merge_eval.sh",
        commit="0123abc",
        dirty=True,
        bootstrap=Bootstrap(draws=400),
    )


def with_predictions(results: list[SourceResult], folder: Path) -> list[SourceResult]:
    made = []
    for result in results:
        files = {}
        for task, score in result.scores.items():
            files[task] = folder / f"{result.source.replace('/', '_')}-{task}.jsonl"
            answers = [
                Prediction(name, f"red <b>{name}</b>" if value else "*blue*|") for name, value in score.values.items()
            ]
            write_predictions(files[task], answers)
        made.append(dataclasses.replace(result, predictions=files))
    return made


def tables_of(results, context):
    rows = arrange_rows(results)
    resampled = resample(rows, context)
    return main_table(rows, context, resampled), published_table(rows, context)


def cell(table, title, column):
    (row,) = [row for row in table.rows if row.title == title]
    return row.cells[[one.key for one in table.columns].index(column)]
