"""Synthetic scores, results and a context that the tests of tables and reports share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from eval.report import assemble
from eval.report.estimates import Estimates
from eval.report.published import published_table
from eval.report.results import CHOSEN, Choice, Context, SourceResult, group_results
from eval.report.tables import main_table
from eval.settings import Bootstrap, Task
from robustmerge.stage import drawing
from robustmerge.stage.records import Example, Prediction, Score, write_examples, write_predictions

REPOSITORY = Path(__file__).resolve().parent.parent
PAPER_URL = "https://arxiv.org/abs/2502.17159"
N = 120


def make_task(name: str, title: str, seen: bool) -> Task:
    return Task(name, title, seen, "{text}", "text", "exact_match", 8)


TASKS = (make_task("vqav2", "VQAv2", True), make_task("rec", "REC", True), make_task("aokvqa", "AOKVQA", False))


def make_score(task: str, right: int, **counts: int) -> Score:
    """The first `right` of N questions are right."""
    values = {f"{task}-{i}": float(i < right) for i in range(N)}
    missed = {"n_empty": 0, "n_unparsed": 0, "n_failed": 0, **counts}
    return Score(task, "exact_match", 100 * right / N, N, N - sum(missed.values()), **missed, values=values)


def make_result(source: str, kind: str, title: str, right: dict[str, int], **more) -> SourceResult:
    scores = {task: make_score(task, count) for task, count in right.items()}
    method = source.removeprefix("merged/") if kind == "merged" else ""
    return SourceResult(source, kind, title, scores, address=f"{source}-1a2b3c4d", method=method, **more)


def make_results() -> list[SourceResult]:
    return [
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 80, "rec": 60, "aokvqa": 50}),
        make_result("merged/mine", "merged", "Mine", {"vqav2": 60, "rec": 60, "aokvqa": 49}),
        make_result("merged/task_arithmetic", "merged", "Task Arithmetic", {"vqav2": 50, "rec": 59, "aokvqa": 40}),
        make_result("multi_task", "multi_task", "Multi-task", {"vqav2": 90, "rec": 80, "aokvqa": 60}),
        make_result("individual", "individual", "Individual", {"vqav2": 100, "rec": 90}),
        make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 20, "rec": 30, "aokvqa": 40}),
    ]


# Titles and how much better than Task Arithmetic, in points.
SWEPT = {"task_arithmetic": ("Task Arithmetic", 0), "dare": ("DARE", 1), "ties": ("TIES", -6), "pcb": ("PCB", 3)}
SWEPT = {**SWEPT, "robustmerge": ("RobustMerge", 7)}
GRID = (0.25, 0.5, 1.0, 2.0)


def make_swept_score(task: str, p: float, seed: int, questions: int = N) -> Score:
    """Each question is right with probability p; the same seed draws the same numbers."""
    drawn = np.random.default_rng([seed, len(task), *task.encode()]).random(questions) < p
    values = {f"{task}-{i}": float(right) for i, right in enumerate(drawn)}
    return Score(task, "exact_match", 100 * float(drawn.mean()), questions, questions, 0, 0, 0, values)


def make_sweep(tasks, seeds=(1, 2, 3, 4, 5), questions: int = N, noise: float = 1.5) -> list[SourceResult]:
    """A sweep over seeds and the A that experts start from: every method at its default and a chosen strength.

    noise: deviation over seeds of a source's level, in points.
    """
    generator = np.random.default_rng(0)
    results: list[SourceResult] = []

    def add(source: str, kind: str, title: str, level: float, seed: int | None, **more) -> None:
        jitter = 0 if seed is None else noise * generator.standard_normal()
        scored = [task for task in tasks if task.seen or kind != "individual"]
        scores = {
            task.name: make_swept_score(task.name, (level + jitter + 4 * place) / 100, seed or 0, questions)
            for place, task in enumerate(scored)
        }
        results.append(SourceResult(source, kind, title, scores, address=f"{source}-1a2b3c4d", seed=seed, **more))

    add("zero_shot", "zero_shot", "Zero-shot", 15, None)
    for seed in seeds:
        add("multi_task", "multi_task", "Multi-task", 45, seed)
        for start, shift in (("independent A", 0), ("shared A", 3)):
            add("individual", "individual", "Individual", 50, seed, facet=start)
            for name, (title, better) in SWEPT.items():
                add(f"merged/{name}", "merged", title, 22 + shift + better, seed, facet=start, method=name)
                factor = GRID[(seed + len(name)) % 4]
                means = {one: 30 - 3 * abs(one - factor) for one in GRID}
                choice = Choice(factor, f"{2 * factor**0.5:.3g}", factor in (GRID[0], GRID[-1]), means)
                more = {"facet": start, "method": name, "variant": CHOSEN, "choice": choice}
                add(f"merged/{name}", "merged", title, 26 + shift + better / 2, seed, **more)
    return results


def make_seeds(name: str, title: str, rights: dict[int, dict[str, int]], **more) -> list[SourceResult]:
    return [make_result(f"merged/{name}", "merged", title, right, seed=seed, **more) for seed, right in rights.items()]


def both(right: int) -> dict[str, int]:
    return {"vqav2": right, "rec": right, "aokvqa": right}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built, but not rendered, which takes as long as the rest of a report."""
    monkeypatch.setattr(drawing, "_save", lambda figure, kind: b"<svg/>")
    monkeypatch.setattr(assemble, "draw_contact_sheet", lambda files: b"")


@pytest.fixture(scope="session")
def sweep() -> list[SourceResult]:
    return make_sweep(TASKS)


@pytest.fixture(scope="session")
def context(tmp_path_factory) -> Context:
    """A report's facts, with a question file and pictures for every task."""
    questions, data = {}, tmp_path_factory.mktemp("data")
    for task in TASKS:
        folder = data / task.name
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


@pytest.fixture(scope="session")
def plain_context(context) -> Context:
    """The same without questions: no examples and no contact sheet, which take half the time of a report."""
    return dataclasses.replace(context, questions={})


def with_predictions(results: list[SourceResult], folder: Path) -> list[SourceResult]:
    with_files = []
    for result in results:
        files = {}
        for task, score in result.scores.items():
            files[task] = folder / f"{result.source.replace('/', '_')}-{task}.jsonl"
            answers = [
                Prediction(name, f"red <b>{name}</b>" if value else "*blue*|") for name, value in score.values.items()
            ]
            write_predictions(files[task], answers)
        with_files.append(dataclasses.replace(result, predictions=files))
    return with_files


def measure(rows, context) -> Estimates:
    return Estimates(rows, [task.name for task in context.tasks], context.bootstrap)


def tables_of(results, context):
    rows = group_results(results)
    return main_table(rows, context, measure(rows, context)), published_table(rows, context)


def cell(table, title, column):
    (row,) = [row for row in table.rows if row.title == title]
    return row.cells[[one.key for one in table.columns].index(column)]
