"""Speed on a GPU: batched answers of a LLaVA-1.5-7B with random weights beside the plain loop, round by round."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.predict import plan_batches
from eval.questions import read_prompts
from llava_ext.backend import DTYPES
from pipeline.tools.bench.random_llava import (
    Drawn,
    answer_in_batches,
    answer_one_by_one,
    clock,
    draw_adapter,
    draw_questions,
    forget_peak,
    peak_memory,
    time_parts,
)
from robustmerge.stage.settings import UserError

PLAIN = 0  # stands for the plain loop among batch sizes
WARM_UP = 2  # questions that the plain loop answers before anything is timed


@dataclass(frozen=True)
class Plan:
    """What is measured. pictures: sizes in pixels; batches: sizes; seconds: after which no further round begins."""

    shape: str = "7b"
    dtype: str = "fp16"
    device: str = "cuda"
    questions: int = 128
    tokens: int = 16
    batches: tuple[int, ...] = (16, 32, 64)
    pictures: tuple[tuple[int, int], ...] = ((336, 336), (640, 480))
    runs: int = 3
    seconds: float = 240.0


def bench(plan: Plan, folder: Path, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """All rows as they stand, after every round. folder: an empty one for questions, answers and the model's config."""
    started = time.monotonic()
    made = []
    loading = clock(lambda: made.append(Drawn(folder / "base", plan.shape, plan.device, DTYPES[plan.dtype])))
    (generator,) = made
    parameters = sum(weight.numel() for weight in generator.model.parameters())
    tell(f"{parameters / 1e9:.2f} billion random weights in {loading:.0f} s")
    for size in plan.pictures:
        draw_questions(folder / _told(size), plan.questions, size, generator.shape.vocabulary)
    (folder / "work").mkdir()
    rows = {(size, batch): _Row(size, batch) for size in plan.pictures for batch in (PLAIN, *plan.batches)}
    _warm_up(plan, generator, folder, rows, tell)
    found = {"plan": dataclasses.asdict(plan), "parameters": parameters, "drawn": loading}
    found["parts"] = _parts(plan, generator, folder, tell)
    longest = 0.0
    for number in range(plan.runs):
        if number and time.monotonic() - started + longest > plan.seconds:
            tell(f"no time for another round: {number} of {plan.runs}")
            break
        longest = max(longest, clock(lambda: _round(plan, generator, folder, rows, tell)))
        found["rows"] = [row.told(rows[row.size, PLAIN], plan.questions) for row in rows.values()]
        yield found
    adapter = draw_adapter(folder / "adapter", generator.model, seed=1)
    found["use"] = clock(lambda: generator.use(adapter))
    tell(f"an adapter is merged into the base in {found['use']:.1f} s")
    yield found


@dataclass
class _Row:
    """One way of answering at one size of pictures. seconds: a number a round; memory: GB; failed: why, or empty."""

    size: tuple[int, int]
    batch: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    answers: list[str] = dataclasses.field(default_factory=list)
    memory: float | None = None
    failed: str = ""

    def told(self, plain: _Row, questions: int) -> dict[str, Any]:
        """The row as the table has it; `times` is the median of the ratios within a round, `same` of all answers."""
        row = {"picture": _told(self.size), "batch": self.batch, "failed": self.failed}
        if self.failed or not self.seconds:
            return row
        row |= {"seconds": self.seconds, "rate": questions / statistics.median(self.seconds), "memory": self.memory}
        if plain.seconds:
            pairs = zip(plain.seconds, self.seconds, strict=True)
            same = sum(one == other for one, other in zip(plain.answers, self.answers, strict=True))
            row |= {"times": statistics.median(slow / fast for slow, fast in pairs), "same": same / questions}
        return row


def _told(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _warm_up(plan: Plan, generator: Drawn, folder: Path, rows: dict, tell: Callable[[str], None]) -> None:
    """Every kernel once; a batch that does not fit on the GPU is found here."""
    size = plan.pictures[0]
    for batch in plan.batches:
        try:
            examples = read_prompts(folder / _told(size) / "test.jsonl", "{text}")[:batch]
            generator(examples, folder / _told(size), plan.tokens)
        except torch.OutOfMemoryError as error:
            tell(f"batch {batch} does not fit: {error}")
            for key, row in rows.items():
                row.failed = "no memory" if key[1] == batch else row.failed
        generator.features.clear()
    examples = read_prompts(folder / _told(size) / "test.jsonl", "{text}")[:WARM_UP]
    if not all(answer_one_by_one(generator, examples, folder / _told(size), plan.tokens)):
        raise UserError(f"the random model gives no text in {plan.dtype}: its numbers are not finite (--dtype)")


def _parts(plan: Plan, generator: Drawn, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Where the time goes, for a batch of one and for the largest that fits."""
    parts = []
    for size in plan.pictures:
        place = folder / _told(size)
        examples = read_prompts(place / "test.jsonl", "{text}")
        for batch in (1, min(max(plan.batches), plan.questions)):
            found = time_parts(generator, plan_batches(examples, batch)[0], place, plan.tokens)
            parts.append({"picture": _told(size), "batch": batch, **dataclasses.asdict(found)})
            tell(f"{_told(size)}, batch {batch}: {found}")
    return parts


def _round(plan: Plan, generator: Drawn, folder: Path, rows: dict, tell: Callable[[str], None]) -> None:
    """Every row once."""
    for (size, batch), row in rows.items():
        if row.failed:
            continue
        questions = folder / _told(size) / "test.jsonl"
        forget_peak()
        started = time.perf_counter()
        row.answers = _answer(plan, generator, questions, batch, folder)
        row.seconds.append(time.perf_counter() - started)
        row.memory = max(row.memory or 0.0, peak) if (peak := peak_memory()) is not None else None
        way = f"batches of {batch}" if batch else "plain loop"
        tell(f"{_told(size)}, {way}: {plan.questions / row.seconds[-1]:.2f} questions/s")


def _answer(plan: Plan, generator: Drawn, questions: Path, batch: int, folder: Path) -> list[str]:
    if batch == PLAIN:
        return answer_one_by_one(generator, read_prompts(questions, "{text}"), questions.parent, plan.tokens)
    return answer_in_batches(generator, questions, plan.tokens, batch, folder / "work")


def table_of(found: dict[str, Any]) -> str:
    """The rows and the parts as Markdown."""
    lines = ["| pictures | answered | questions/s | times the plain loop | same answers | GPU memory GB |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in found["rows"]:
        way = f"batches of {row['batch']}" if row["batch"] else "`model.generate`, one by one"
        if "rate" not in row:
            cells = [row["failed"] or "not measured", "", "", ""]
        else:
            times = f"{row['times']:.1f}" if "times" in row else "—"
            same = f"{100 * row['same']:.0f} %" if "same" in row else "—"
            memory = "—" if row["memory"] is None else f"{row['memory']:.1f}"
            cells = [f"{row['rate']:.2f}", times, same, memory]
        lines.append(f"| {row['picture']} | {way} | " + " | ".join(cells) + " |")
    lines += ["", "| pictures | batch | reading ms | looking ms | prompt ms | a further token ms |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for part in found["parts"]:
        cells = [f"{1000 * part[name]:.1f}" for name in ("read", "look", "prompt", "token")]
        lines.append(f"| {part['picture']} | {part['batch']} | " + " | ".join(cells) + " |")
    plan = found["plan"]
    rounds = max((len(row.get("seconds", [])) for row in found["rows"]), default=0)
    lines += [
        "",
        f"A LLaVA of shape {plan['shape']}, {found['parameters'] / 1e9:.2f} billion random weights, {plan['dtype']}, "
        f"on {plan['device']}; {plan['questions']} questions of 6 to 30 words, {plan['tokens']} tokens an answer. "
        f"Medians of {rounds} rounds, in each of which every way answers all questions once; ratios are of one round. "
        "Reading: of one batch's pictures on the CPU; looking: the vision tower; prompt: everything else before the "
        "second token." + (f" Another adapter instead of this one: {found['use']:.1f} s." if "use" in found else ""),
    ]
    return "\n".join(lines) + "\n"
