"""The benchmark of training: ways to train side by side, each in a process of its own, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.tools.bench.answering import save_rounds
from pipeline.tools.bench.processes import Cost, run_together
from pipeline.tools.bench.rounds import Series, describe_machine, run_rounds
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_markdown

PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed")
RESULTS = REPOSITORY / "results" / "bench_train"
WARM_UP = 2  # steps before anything is timed
WORK = "pipeline.tools.bench.training_work:train"
TITLES = (
    "trained by",
    "checkpointing",
    "rows together",
    "rows/s",
    "tokens/s",
    "of the plain loop",
    "MFU",
    "GPU memory GB",
)
NAMES = {"plain": "peft and transformers, by hand", "single_gpu": "`trainer=single_gpu`", "cpu": "`trainer=cpu`"}
# Dense bf16 operations a second of a GPU, by a part of its name: what its maker states.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "4090": 165e12}

Run = Callable[[str, Sequence[dict[str, Any]]], list[Cost]]


@dataclass(frozen=True)
class Way:
    """A way to train: an engine of configs/trainer, or plain; with gradient checkpointing or without; rows together."""

    engine: str
    checkpointing: bool
    batch: int


@dataclass(frozen=True)
class Workload:
    """What is measured. seconds: of whole steps, for each way; rows: different ones; picture: their size in pixels."""

    shape: str = "7b"
    device: str = "cuda"
    precision: str = "bf16"
    seconds: float = 40.0
    rows: int = 256
    picture: tuple[int, int] = (640, 480)
    ways: tuple[Way, ...] = (
        Way("plain", True, 16),
        Way("single_gpu", True, 16),
        Way("plain", False, 8),
        Way("single_gpu", False, 8),
        Way("zero3", True, 16),
        Way("zero3_offload", True, 16),
    )


SMALL = Workload(
    "tiny", "cpu", "fp32", 2.0, 32, (70, 40),
    (Way("plain", True, 4), Way("cpu", True, 4), Way("plain", False, 4), Way("cpu", False, 4), Way("zero3", True, 4)),
)  # fmt: skip


def bench(workload: Workload, folder: Path, run: Run = run_together) -> Iterator[dict[str, Any]]:
    """The table as it stands, after each way. folder: an empty one. run: does work on inputs, in fresh processes."""
    draw_material(workload, folder)
    rows: list[dict[str, Any]] = []
    for way in workload.ways:
        series = Series(format_way(way), partial(measure_way, workload, way, folder, run))
        for _ in run_rounds([series], 1):
            rows.append({**dataclasses.asdict(way), "failed": series.failed, **dict(*series.measurements)})
        yield {"plan": dataclasses.asdict(workload), "rows": rows}


def draw_material(workload: Workload, folder: Path) -> None:
    """Write a base without weights, and training rows of short answers on pictures."""
    from pipeline.tools.bench.random_llava import SHAPES, draw_questions, make_words, write_layout
    from robustmerge.stage.records import read_examples, write_examples

    shape = SHAPES[workload.shape]
    write_layout(folder / "base", shape)
    questions = draw_questions(folder / "data", workload.rows, workload.picture, shape.vocabulary)
    texts, words = random.Random(0), make_words(shape.vocabulary // 4)
    answers = [" ".join(texts.choices(words, k=texts.randint(1, 8))) for _ in range(workload.rows)]
    pairs = zip(read_examples(questions), answers, strict=True)
    write_examples(folder / "data" / "train.jsonl", [dataclasses.replace(one, answer=text) for one, text in pairs])


def measure_way(workload: Workload, way: Way, folder: Path, run: Run) -> dict[str, Any]:
    """Train in one way; `private`: MB of the process's own memory on the host, libraries included."""
    inputs = {"folder": str(folder), "device": workload.device, "precision": workload.precision}
    (cost,) = run(WORK, [{**inputs, "seconds": workload.seconds, **dataclasses.asdict(way)}])
    return {**cost.answer, "private": cost.private}


def format_way(way: Way) -> str:
    return f"{way.engine}, {'with' if way.checkpointing else 'without'} checkpointing, {way.batch} rows together"


def format_table(table: dict[str, Any]) -> str:
    """The rows as Markdown. MFU: operations a second, of those that the GPU's maker states."""
    measured = [row for row in table["rows"] if not row["failed"]]
    plain = {row["checkpointing"]: row["rows"] / row["wall"] for row in measured if row["engine"] == "plain"}
    lines = []
    for row in table["rows"]:
        way = [NAMES.get(row["engine"], f"`trainer={row['engine']}`"), "yes" if row["checkpointing"] else "no"]
        cells = [row["failed"], "", "", "", ""]
        if not row["failed"]:
            speed, peak = row["rows"] / row["wall"], table.get("peak")
            beside = f"{speed / plain[row['checkpointing']]:.2f}" if row["checkpointing"] in plain else "—"
            share = "—" if peak is None else f"{100 * row['operations'] / row['wall'] / peak:.0f} %"
            memory = "—" if row["memory"] is None else f"{row['memory']:.1f}"
            cells = [f"{speed:.2f}", f"{row['tokens'] / row['wall']:.0f}", beside, share, memory]
        lines.append([*way, str(row["batch"]), *cells])
    plan = table["plan"]
    about = (
        f"A LLaVA of shape {plan['shape']} with random weights, {plan['precision']}, on one device ({plan['device']}): "
        "LoRA of rank 16 and the projector, a picture and a short answer a row. Whole steps of two batches, "
        f"{plan['seconds']:g} s for each way after {WARM_UP} that do not count, pictures read meanwhile. MFU: 4 "
        "operations for each frozen number of the language model and token, 6 for each trained one, attention added, "
        "recomputation not counted, of what the GPU's maker states."
    )
    return f"{about}\n\n{format_markdown(TITLES, lines, text=(0, 1))}\n"


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU: within a minute")
    parser.add_argument("--seconds", type=float, help="of each way (default 40; small: 2)")
    parser.add_argument("--out", type=Path, help="for the table (default results/bench_train; small: printed only)")
    arguments = parser.parse_args()
    workload, machine = SMALL if arguments.small else Workload(), describe_machine(PACKAGES)
    if arguments.seconds:
        workload = dataclasses.replace(workload, seconds=arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        machine["gpu"] = name = "" if arguments.small else find_gpu()
        peak = next((peak for part, peak in PEAKS.items() if part in name), None)
        tables = ({**table, "peak": peak} for table in bench(workload, Path(folder)))
        if arguments.small and arguments.out is None:
            *_, table = tables
            print(format_table(table))
        else:
            save_rounds(arguments.out or RESULTS, tables, format_table, machine)


def find_gpu() -> str:
    """The name of the first GPU. Raises UserError if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("there is no GPU here; --small runs the same code on a tiny model")
    return torch.cuda.get_device_name()
