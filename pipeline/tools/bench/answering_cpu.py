"""Speed on a CPU: batches against single questions, one load of the base against many, one process against two."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stages.predict import TOKENS_OF_A_PROMPT
from pipeline.todo import cut_evenly
from pipeline.tools.bench.process_cost import ONE_THREAD
from robustmerge.stage.address import REPOSITORY, read_manifest
from robustmerge.stage.settings import UserError

Wave = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]
CHILD = "pipeline.tools.bench.answering_child"


@dataclass(frozen=True)
class Task:
    """Questions and how they are asked: fields of eval.settings.Generation, without batch size and selection."""

    questions: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What answers: a base, its sources (None is the base alone), and the tasks."""

    name: str
    base: str
    sources: tuple[str | None, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Row:
    """One way of answering. processes: side by side; each: the base is loaded for every source by a process of its own.

    against: the name of the row that it is compared with.
    """

    name: str
    batch: int
    sources: int = 1
    processes: int = 2
    each: bool = False
    against: str = ""


@dataclass(frozen=True)
class Plan:
    """What is measured. limit: questions of every task; batch: prompts answered together; runs: rounds."""

    limit: int = 128
    batch: int = 64
    sources: int = 4
    runs: int = 3
    fast: bool = True

    def rows(self) -> list[Row]:
        """Every way of answering, those it is compared with first."""
        together, each = f"{self.sources} sources, a load each", f"{self.sources} sources, one load a process"
        return [
            Row("one by one", 1),
            Row(f"batches of {self.batch}", self.batch, against="one by one"),
            Row("one process", self.batch, processes=1),
            Row("two processes", self.batch, against="one process"),
            Row(together, self.batch, self.sources, each=True),
            Row(each, self.batch, self.sources, against=together),
        ]


def find_run(folder: Path, sources: int) -> Run:
    """What a finished run has: its base, merged models, and the settings its predictions were made with.

    Raises UserError if the folder is not such a run.
    """
    bases = sorted(path.parent for path in (folder / "base").glob("*/manifest.json"))
    merged = sorted(path.parent for path in (folder / "merged").glob("*/adapter_config.json"))
    tasks: dict[str, Task] = {}
    for manifest in sorted((folder / "predictions").rglob("*.manifest.json")):
        identity = read_manifest(manifest)["identity"]
        settings = {name: value for name, value in identity["settings"].items() if name not in ("batch_size", "only")}
        name, data = settings["task"], identity["inputs"]["data"][:8]
        questions = folder / "data" / f"{name}-{data}" / f"{settings.get('split', 'test')}.jsonl"
        if name not in tasks and "split" not in settings and questions.is_file():
            tasks[name] = Task(str(questions), settings)
    if not bases or not tasks or len(merged) + 1 < sources:
        raise UserError(
            f"{folder} is no finished run with {sources - 1} merged models: bash scripts/train_all.sh and "
            "bash scripts/merge_eval.sh make one; --random needs none"
        )
    chosen = (None, *map(str, merged[: sources - 1]))
    return Run(folder.name, str(bases[-1]), chosen, tuple(tasks[name] for name in sorted(tasks)))


def draw_run(folder: Path, sources: int, limit: int) -> Run:
    """A base of the tiny model's shape with random weights, random adapters and questions about random pictures."""
    from llava_ext.backend import quiet_libraries
    from llava_ext.settings import BaseModel
    from llava_ext.small.build import build_model, build_processor, save_base
    from llava_ext.small.tokenizer import build_tokenizer
    from pipeline.tools.bench.random_llava import draw_adapter, draw_questions, words

    quiet_libraries()
    shape = BaseModel()
    tokenizer = build_tokenizer([" ".join(words(shape.vocabulary))], shape.vocabulary)
    (folder / "base").mkdir(parents=True)
    model = build_model(shape, tokenizer)
    save_base(folder / "base", model, build_processor(shape, tokenizer))
    adapters = [draw_adapter(folder / f"adapter{number}", model, number) for number in range(1, sources)]
    settings = {"prompt": "{text}", "template": shape.template, "max_new_tokens": 8, "products": "fast"}
    side = shape.vision.image_size
    tasks = [
        Task(str(draw_questions(folder / name, limit, (side, side), shape.vocabulary)), {**settings, "task": name})
        for name in ("one", "two")
    ]
    return Run("random weights", str(folder / "base"), (None, *map(str, adapters)), tuple(tasks))


def run_wave(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Do pieces of work side by side, a fresh process of one thread each; all begin together.

    Each answer is that of `answering_child.answer`, and `wall`: from the start of the processes to the end of the last.
    Raises UserError if one fails.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", CHILD]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, json.dumps(piece)], cwd=REPOSITORY, env={**os.environ, **ONE_THREAD}, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )
            for piece in pieces
        ]  # fmt: skip
        ready = [child.stdout.readline() for child in children]
        for child in children:
            child.stdin.close()  # what each waits for
        lines = [child.stdout.read().splitlines() for child in children]
    wall = time.perf_counter() - started
    if any(child.returncode for child in children) or not all(ready):
        raise UserError("a process that answers has failed, see above")
    return [{**json.loads(line[-1]), "wall": wall} for line in lines]


def cut(items: Sequence[dict[str, Any]], pieces: int) -> list[list[dict[str, Any]]]:
    """Consecutive pieces as the line makes them: sources change rarely."""
    costs = [item["settings"]["max_new_tokens"] + TOKENS_OF_A_PROMPT for item in items]
    return [[item for item, _ in piece] for piece in cut_evenly(items, costs, pieces)]


def measure(row: Row, run: Run, plan: Plan, work: Path, wave: Wave = run_wave) -> dict[str, float]:
    """Answer as the row says.

    Returns answers, seconds of answering (the longest of those side by side), their CPU seconds (of all), and wall.
    """
    items = [
        {"source": source, "questions": task.questions, "settings": task.settings}
        for source in run.sources[: row.sources]
        for task in run.tasks
    ]
    same = {"base": run.base, "fast": plan.fast, "batch": row.batch, "limit": plan.limit, "work": str(work)}
    if row.each:
        pieces = [[item for item in items if item["source"] == source] for source in run.sources[: row.sources]]
    else:
        pieces = cut(items, row.processes)
    total = {"answers": 0, "answering": 0.0, "cpu": 0.0, "wall": 0.0}
    for start in range(0, len(pieces), row.processes):
        found = wave([{**same, "items": piece} for piece in pieces[start : start + row.processes]])
        for sum_up in ("answers", "cpu"):
            total[sum_up] += sum(one[sum_up] for one in found)
        for clock in ("answering", "wall"):
            total[clock] += max(one[clock] for one in found)
    return total


def bench(
    plan: Plan, run: Run, work: Path, tell: Callable[[str], None], wave: Wave = run_wave
) -> Iterator[dict[str, Any]]:
    """All rows as they stand, after every round. work: an empty folder for answers."""
    about = {"plan": dataclasses.asdict(plan), "run": run.name, "tasks": len(run.tasks)}
    found: dict[str, list[dict[str, float]]] = {row.name: [] for row in plan.rows()}
    for _ in range(plan.runs):
        for row in plan.rows():
            cost = measure(row, run, plan, work, wave)
            found[row.name].append(cost)
            tell(f"{row.name}: {cost['answers']} answers in {cost['answering']:.1f} s, {cost['wall']:.1f} s in all")
        yield {**about, "rows": [_told(row, found) for row in plan.rows()]}


def _told(row: Row, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The row as the table has it; `times` is the median of the ratios within a round.

    Loads are compared by wall seconds, with the start of the processes; all else by the seconds of answering.
    """
    costs = found[row.name]
    told = {**dataclasses.asdict(row), "answers": costs[0]["answers"]}
    for clock in ("answering", "cpu", "wall"):
        told[clock] = [cost[clock] for cost in costs]
    if row.against:
        clock = "wall" if row.sources > 1 else "answering"
        pairs = zip(found[row.against], costs, strict=True)
        told["times"] = statistics.median(slow[clock] / fast[clock] for slow, fast in pairs)
    return told


def table_of(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| answered | processes | answers | answering s | answers/s | per CPU s | wall s | times faster |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for row in found["rows"]:
        answering, cpu, wall = (statistics.median(row[clock]) for clock in ("answering", "cpu", "wall"))
        times = f"{row['times']:.1f} than {row['against']}" if row["against"] else ""
        lines.append(
            f"| {row['name']} | {row['processes']} | {row['answers']} | {answering:.1f} | "
            f"{row['answers'] / answering:.0f} | {row['answers'] / cpu:.0f} | {wall:.1f} | {times} |"
        )
    plan = found["plan"]
    about = (
        f"Base and sources: {found['run']}; {plan['limit']} questions of each of {found['tasks']} tasks. Medians of "
        f"{len(found['rows'][0]['wall'])} rounds, in each of which every row is measured once; ratios are taken within "
        "a round. Processes of one thread. Answering: with the base loaded, by the slowest process; per CPU s: answers "
        "in a second of one core, which hardly depends on what else the machine does; wall: with the start of the "
        "processes and loading, by which loads are compared."
    )
    return "\n".join([*lines, "", about]) + "\n"
