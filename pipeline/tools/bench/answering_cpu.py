"""Speed on a CPU: batches against single questions, one load of the base against many, one process against two."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.program import compose
from pipeline.stages.base import fetch_bases
from pipeline.stages.predict import TOKENS_OF_A_PROMPT
from pipeline.sweep import make_plans
from pipeline.tools.bench.processes import run_together
from pipeline.tools.bench.rounds import Series, median_ratio, run_rounds
from pipeline.work_items import cut_evenly
from robustmerge.stage.address import read_manifest
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_markdown

Answer = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]
TITLES = ("answered", "processes", "answers", "answering s", "answers/s", "per CPU s", "wall s", "times faster")


@dataclass(frozen=True)
class Task:
    """The questions of a task, and the fields of eval.settings.Generation but for batch size and selection."""

    questions: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What is measured: a base, its sources (None is the base alone), and the tasks."""

    name: str
    base: str
    sources: tuple[str | None, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class CpuRow:
    """One way of answering. processes: side by side; each: every source gets a process that loads the base.

    against: the name of the row that it is compared with.
    """

    name: str
    batch: int
    sources: int = 1
    processes: int = 2
    each: bool = False
    against: str = ""


@dataclass(frozen=True)
class CpuWorkload:
    """How much is measured. limit: questions of every task; batch: prompts answered together; runs: rounds."""

    limit: int = 128
    batch: int = 64
    sources: int = 4
    runs: int = 3
    fast: bool = True

    def rows(self) -> list[CpuRow]:
        """Every way of answering, those it is compared with first."""
        together, each = f"{self.sources} sources, a load each", f"{self.sources} sources, one load a process"
        return [
            CpuRow("one by one", 1),
            CpuRow(f"batches of {self.batch}", self.batch, against="one by one"),
            CpuRow("one process", self.batch, processes=1),
            CpuRow("two processes", self.batch, against="one process"),
            CpuRow(together, self.batch, self.sources, each=True),
            CpuRow(each, self.batch, self.sources, against=together),
        ]


def find_run(folder: Path, sources: int) -> Run:
    """What a finished run has: its base, merged models, and the settings its predictions were made with.

    Raises UserError if the folder is not such a run.
    """
    merged = sorted(path.parent for path in (folder / "merged").glob("*/adapter_config.json"))
    tasks: dict[str, Task] = {}
    for manifest in sorted((folder / "predictions").rglob("*.manifest.json")):
        identity = read_manifest(manifest)["identity"]
        settings = {name: value for name, value in identity["settings"].items() if name not in ("batch_size", "only")}
        name, data = settings["task"], identity["inputs"]["data"][:8]
        questions = folder / "data" / f"{name}-{data}" / f"{settings.get('split', 'test')}.jsonl"
        if name not in tasks and "split" not in settings and questions.is_file():
            tasks[name] = Task(str(questions), settings)
    if not tasks or len(merged) + 1 < sources:
        raise UserError(
            f"{folder} is no finished run with {sources - 1} merged models: bash scripts/train_all.sh and "
            "bash scripts/merge_eval.sh make one; --random needs none"
        )
    chosen = (None, *map(str, merged[: sources - 1]))
    return Run(folder.name, str(find_base(folder.name)), chosen, tuple(tasks[name] for name in sorted(tasks)))


def find_base(run: str) -> Path:
    """The base of a run folder's model (`<benchmark>-<model>`); sources of other bases of the model fit it, too."""
    (plan,) = make_plans([compose("predict", [f"model={run.partition('-')[2]}"])])
    fetch_bases([plan])
    return plan.base.path


def draw_run(folder: Path, sources: int, limit: int) -> Run:
    """A base of the tiny model's shape with random weights, random adapters and questions about random pictures."""
    from llava_ext.backend import quiet_libraries
    from llava_ext.settings import Pretraining
    from llava_ext.small.build import build_model, build_processor, save_base
    from llava_ext.small.tokenizer import build_tokenizer
    from pipeline.tools.bench.random_llava import draw_adapter, draw_questions, make_words

    quiet_libraries()
    shape = Pretraining()
    tokenizer = build_tokenizer([" ".join(make_words(shape.vocabulary))], shape.vocabulary)
    (folder / "base").mkdir(parents=True)
    model = build_model(shape, tokenizer)
    save_base(folder / "base", model, build_processor(shape.vision, tokenizer))
    adapters = [draw_adapter(folder / f"adapter{number}", model, number) for number in range(1, sources)]
    settings = {"prompt": "{text}", "template": shape.template, "max_new_tokens": 8, "products": "fast"}
    side = shape.vision.image_size
    tasks = [
        Task(str(draw_questions(folder / name, limit, (side, side), shape.vocabulary)), {**settings, "task": name})
        for name in ("one", "two")
    ]
    return Run("random weights", str(folder / "base"), (None, *map(str, adapters)), tuple(tasks))


def answer_together(inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer several inputs side by side, a fresh process of one thread each: what `answering_work.answer` returns."""
    return [cost.answer for cost in run_together("pipeline.tools.bench.answering_work:answer", inputs)]


def cut_items(items: Sequence[dict[str, Any]], pieces: int) -> list[list[dict[str, Any]]]:
    """Consecutive pieces of about the same cost, cut as the pipeline cuts them: sources change rarely."""
    costs = [item["settings"]["max_new_tokens"] + TOKENS_OF_A_PROMPT for item in items]
    return [[item for item, _ in piece] for piece in cut_evenly(items, costs, pieces)]


def measure(
    row: CpuRow, run: Run, workload: CpuWorkload, work: Path, answer: Answer = answer_together
) -> dict[str, float]:
    """Answer as the row says.

    Returns answers, seconds of answering (the longest of those side by side), their CPU seconds (of all), and wall
    seconds from the start of the processes to the end of the last.
    """
    sources = run.sources[: row.sources]
    items = [
        {"source": source, "questions": task.questions, "settings": task.settings}
        for source in sources
        for task in run.tasks
    ]
    common = {"base": run.base, "fast": workload.fast, "batch": row.batch, "limit": workload.limit, "work": str(work)}
    if row.each:
        pieces = [[item for item in items if item["source"] == source] for source in sources]
    else:
        pieces = cut_items(items, row.processes)
    total = {"answers": 0, "answering": 0.0, "cpu": 0.0, "wall": 0.0}
    for start in range(0, len(pieces), row.processes):
        begun = time.perf_counter()
        answered = answer([{**common, "items": piece} for piece in pieces[start : start + row.processes]])
        total["wall"] += time.perf_counter() - begun
        total["answering"] += max(one["answering"] for one in answered)
        for key in ("answers", "cpu"):
            total[key] += sum(one[key] for one in answered)
    return total


def bench(workload: CpuWorkload, run: Run, work: Path, answer: Answer = answer_together) -> Iterator[dict[str, Any]]:
    """The table as it stands, after every round. work: an empty folder for answers. Raises UserError if a row fails."""
    table = {"plan": dataclasses.asdict(workload), "run": run.name, "tasks": len(run.tasks)}
    series = {row.name: Series(row.name, partial(measure, row, run, workload, work, answer)) for row in workload.rows()}
    for _ in run_rounds(list(series.values()), workload.runs):
        if failures := [one.failed for one in series.values() if one.failed]:
            raise UserError(f"a process that answers has failed: {failures[0]}")
        yield {**table, "rows": [_as_row(row, series) for row in workload.rows()]}


def _as_row(row: CpuRow, series: dict[str, Series]) -> dict[str, Any]:
    """The row of table.json; `times` is the median of the ratios within a round.

    Loads are compared by wall seconds, with the start of the processes; all else by the seconds of answering.
    """
    measured = series[row.name]
    values = {**dataclasses.asdict(row), "answers": measured.values("answers")[0]}
    values |= {clock: measured.values(clock) for clock in ("answering", "cpu", "wall")}
    if row.against:
        clock = "wall" if row.sources > 1 else "answering"
        values["times"] = median_ratio(series[row.against].values(clock), values[clock])
    return values


def format_table(table: dict[str, Any]) -> str:
    """The rows as Markdown."""
    cells = []
    for row in table["rows"]:
        answering, cpu, wall = (statistics.median(row[clock]) for clock in ("answering", "cpu", "wall"))
        rates = [f"{answering:.1f}", f"{row['answers'] / answering:.0f}", f"{row['answers'] / cpu:.0f}", f"{wall:.1f}"]
        times = f"{row['times']:.1f} than {row['against']}" if row["against"] else ""
        cells.append([row["name"], str(row["processes"]), str(row["answers"]), *rates, times])
    about = (
        f"Base and sources: {table['run']}; {table['plan']['limit']} questions of each of {table['tasks']} tasks. "
        f"Medians of {len(table['rows'][0]['wall'])} rounds, in each of which every row is measured once; ratios are "
        "taken within a round. Processes of one thread. Answering: with the base loaded, by the slowest process; per "
        "CPU s: answers in a second of one core, which hardly depends on what else the machine does; wall: with the "
        "start of the processes and loading, by which loads are compared."
    )
    return f"{format_markdown(TITLES, cells, text=(0, 7))}\n\n{about}\n"
