"""Speed on a GPU: batched answers of a LLaVA-1.5-7B with random weights beside the plain loop, round by round."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.predict import plan_batches
from eval.questions import read_prompts
from llava_ext.backend import DTYPES
from pipeline.tools.bench.random_llava import (
    RandomGenerator,
    answer_in_batches,
    answer_one_by_one,
    draw_adapter,
    draw_questions,
    peak_memory,
    reset_peak_memory,
    time_action,
    time_parts,
)
from pipeline.tools.bench.rounds import Series, median_ratio, run_rounds, say
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_markdown

PLAIN = 0  # stands for the plain loop among batch sizes
WARM_UP = 2  # questions that the plain loop answers before anything is timed
TITLES = ("pictures", "answered", "questions/s", "times the plain loop", "same answers", "GPU memory GB")
PARTS = {"read": "reading ms", "look": "vision tower ms", "prompt": "prompt ms", "token": "a further token ms"}


@dataclass(frozen=True)
class GpuWorkload:
    """How much is measured. pictures: sizes in pixels; batches: sizes; seconds: after which no further round begins."""

    shape: str = "7b"
    dtype: str = "fp16"
    device: str = "cuda"
    questions: int = 128
    tokens: int = 16
    batches: tuple[int, ...] = (16, 32, 64)
    pictures: tuple[tuple[int, int], ...] = ((336, 336), (640, 480))
    runs: int = 3
    seconds: float = 240.0


class Answerer:
    """The random model, and the questions on pictures of every size. folder: an empty one, for all files."""

    def __init__(self, workload: GpuWorkload, folder: Path):
        self.workload, self.folder = workload, folder
        self.generator = RandomGenerator(folder / "base", workload.shape, workload.device, DTYPES[workload.dtype])
        self.parameters = sum(weight.numel() for weight in self.generator.model.parameters())
        vocabulary = self.generator.shape.vocabulary
        self.questions = {
            size: draw_questions(folder / _format_size(size), workload.questions, size, vocabulary)
            for size in workload.pictures
        }
        (folder / "work").mkdir()

    def warm_up(self) -> set[int]:
        """Run every kernel once; returns the batches that do not fit on the GPU."""
        questions, tokens = self.questions[self.workload.pictures[0]], self.workload.tokens
        examples, too_large = read_prompts(questions, "{text}"), set()
        for batch in self.workload.batches:
            try:
                self.generator(examples[:batch], questions.parent, tokens)
            except torch.OutOfMemoryError as error:
                say(f"batch {batch} does not fit: {error}")
                too_large.add(batch)
            self.generator.features.clear()
        if not all(answer_one_by_one(self.generator, examples[:WARM_UP], questions.parent, tokens)):
            raise UserError(f"the random model's numbers in {self.workload.dtype} are not finite (--dtype)")
        return too_large

    def measure(self, size: tuple[int, int], batch: int) -> dict[str, Any]:
        """Answer all questions on pictures of one size, in batches or by the plain loop."""
        questions, tokens = self.questions[size], self.workload.tokens
        reset_peak_memory()
        started = time.perf_counter()
        if batch == PLAIN:
            examples = read_prompts(questions, "{text}")
            answers = answer_one_by_one(self.generator, examples, questions.parent, tokens)
        else:
            answers = answer_in_batches(self.generator, questions, tokens, batch, self.folder / "work")
        return {"wall": time.perf_counter() - started, "memory": peak_memory(), "answers": answers}

    def time_parts(self) -> list[dict[str, Any]]:
        """Where the time goes, for a batch of one and for the largest."""
        parts = []
        for size, questions in self.questions.items():
            examples = read_prompts(questions, "{text}")
            for batch in (1, min(max(self.workload.batches), self.workload.questions)):
                batch_examples = plan_batches(examples, batch)[0]
                times = time_parts(self.generator, batch_examples, questions.parent, self.workload.tokens)
                parts.append({"picture": _format_size(size), "batch": batch, **dataclasses.asdict(times)})
                say(f"{_format_size(size)}, batch {batch}: {times}")
        return parts


def bench(workload: GpuWorkload, folder: Path) -> Iterator[dict[str, Any]]:
    """The table as it stands, after every round, and with the time of another adapter at the end."""
    started = time.monotonic()
    answerer = Answerer(workload, folder)
    drawn = time.monotonic() - started
    say(f"{answerer.parameters / 1e9:.2f} billion random weights in {drawn:.0f} s")
    series = {
        (size, batch): Series(_name(size, batch), partial(answerer.measure, size, batch))
        for size in workload.pictures
        for batch in (PLAIN, *workload.batches)
    }
    too_large = answerer.warm_up()
    for (_, batch), one in series.items():
        one.failed = "no memory" if batch in too_large else ""
    table: dict[str, Any] = {"plan": dataclasses.asdict(workload), "parameters": answerer.parameters, "drawn": drawn}
    table["parts"] = answerer.time_parts()
    left = workload.seconds - (time.monotonic() - started)
    for _ in run_rounds(list(series.values()), workload.runs, left):
        table["rows"] = [_as_row(*key, one, series[key[0], PLAIN]) for key, one in series.items()]
        yield table
    adapter = draw_adapter(folder / "adapter", answerer.generator.model, seed=1)
    table["use"] = time_action(lambda: answerer.generator.use(adapter))
    say(f"an adapter is merged into the base in {table['use']:.1f} s")
    yield table


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _name(size: tuple[int, int], batch: int) -> str:
    return f"{_format_size(size)}, {f'batches of {batch}' if batch else 'plain loop'}"


def _as_row(size: tuple[int, int], batch: int, series: Series, plain: Series) -> dict[str, Any]:
    """The row of table.json; `times` is the median of the ratios within a round, `same` the share of equal answers."""
    row: dict[str, Any] = {"picture": _format_size(size), "batch": batch, "failed": series.failed}
    if series.failed:
        return row
    answers, seconds = series.values("answers")[-1], series.values("wall")
    pairs = list(zip(plain.values("answers")[-1], answers, strict=True))
    row |= {"seconds": seconds, "rate": len(answers) / statistics.median(seconds)}
    row |= {"memory": max(filter(None, series.values("memory")), default=None)}
    row |= {"times": median_ratio(plain.values("wall"), seconds)}
    return row | {"same": sum(one == other for one, other in pairs) / len(pairs)}


def format_table(table: dict[str, Any]) -> str:
    """The rows and the parts as Markdown."""
    rows = []
    for row in table["rows"]:
        way = f"batches of {row['batch']}" if row["batch"] else "`model.generate`, one by one"
        cells = [row["failed"] or "not measured", "", "", ""]
        if "rate" in row:
            memory = "—" if row["memory"] is None else f"{row['memory']:.1f}"
            cells = [f"{row['rate']:.2f}", f"{row['times']:.1f}", f"{100 * row['same']:.0f} %", memory]
        rows.append([row["picture"], way, *cells])
    parts = [
        [part["picture"], str(part["batch"]), *(f"{1000 * part[name]:.1f}" for name in PARTS)]
        for part in table["parts"]
    ]
    plan = table["plan"]
    rounds = max((len(row.get("seconds", [])) for row in table["rows"]), default=0)
    about = (
        f"A LLaVA of shape {plan['shape']}, {table['parameters'] / 1e9:.2f} billion random weights, {plan['dtype']}, "
        f"on {plan['device']}; {plan['questions']} questions of 6 to 30 words, {plan['tokens']} tokens an answer. "
        f"Medians of {rounds} rounds, in each of which every way answers all questions once; ratios are of one round. "
        "Reading: of one batch's pictures on the CPU; prompt: everything else before the second token."
        + (f" Another adapter instead of this one: {table['use']:.1f} s." if "use" in table else "")
    )
    answers = format_markdown(TITLES, rows, text=(0, 1))
    return f"{answers}\n\n{format_markdown(('pictures', 'batch', *PARTS.values()), parts)}\n\n{about}\n"
