"""The benchmark of answering: its command line, and the cost of batched answers against a plain loop."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.tools.bench.rounds import describe_machine, format_machine, save
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "pillow")
RESULTS = REPOSITORY / "results" / "bench_eval"


def bench_cpu(arguments: argparse.Namespace, work: Path) -> None:
    """Measure on a CPU. work: an empty folder."""
    from pipeline.tools.bench.answering_cpu import CpuWorkload, bench, draw_run, find_run, format_table

    workload = CpuWorkload(**_given(arguments, "limit", "batch", "sources", "runs"))
    if workload.sources < 2:
        raise UserError(f"sources are compared with each other, so two at least, got {workload.sources} (--sources)")
    mini = REPOSITORY / "runs" / "mini-tiny"
    folder = None if arguments.random else arguments.run or (mini if (mini / "merged").is_dir() else None)
    run = find_run(folder.resolve(), workload.sources) if folder else draw_run(work, workload.sources, workload.limit)
    save_rounds(arguments.out or RESULTS, bench(workload, run, work), format_table, describe_machine(PACKAGES))


def bench_gpu(arguments: argparse.Namespace, work: Path) -> None:
    """Measure on a GPU. work: an empty folder. Raises UserError if there is no GPU."""
    import torch

    from pipeline.tools.bench.answering_gpu import GpuWorkload, bench, format_table

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device cpu --gpu-shape tiny runs the same code")
    values = _given(arguments, "device", "dtype", "questions", "tokens", "runs", "seconds")
    values |= {"batches": tuple(arguments.batches)} if arguments.batches else {}
    values |= {"pictures": tuple(map(_read_size, arguments.pictures))} if arguments.pictures else {}
    machine = describe_machine(PACKAGES)
    machine["gpu"] = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    tables = bench(GpuWorkload(shape=arguments.gpu_shape, **values), work)
    save_rounds(arguments.out or RESULTS / "gpu", tables, format_table, machine)


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options given on the command line; the others keep the workload's defaults."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def save_rounds(
    folder: Path, tables: Iterable[dict[str, Any]], format_table: Callable[[dict[str, Any]], str], machine: dict
) -> None:
    """Save the table of every round as it comes, with where it was measured; print the last."""
    for table in tables:
        markdown = f"{format_table(table)}\nMeasured on {format_machine(machine)}.\n"
        save(folder, {"made": machine, **table}, markdown)
    print(f"{markdown}\nsaved as {folder}/table.md and table.json")


def _read_size(text: str) -> tuple[int, int]:
    width, by, height = text.partition("x")
    if not (by and width.isdecimal() and height.isdecimal()):
        raise UserError(f"a picture's size is like 640x480, got '{text}' (--pictures)")
    return int(width), int(height)


def read_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="for the table (default results/bench_eval)")
    parser.add_argument("--runs", type=int, help="rounds, whose medians count (default 3)")
    tiny = parser.add_argument_group("the tiny model on a CPU")
    tiny.add_argument("--run", type=Path, metavar="FOLDER", help="of a finished run (default runs/mini-tiny)")
    tiny.add_argument("--random", action="store_true", help="random weights, whatever runs there are")
    tiny.add_argument("--limit", type=int, help="questions of every task (default 128)")
    tiny.add_argument("--batch", type=int, help="prompts answered together (default 64)")
    tiny.add_argument("--sources", type=int, help="how many share a load of the base (default 4)")
    gpu = parser.add_argument_group("a LLaVA with random weights")
    gpu.add_argument("--gpu", action="store_true", help="measure it, beside a plain loop")
    gpu.add_argument("--gpu-shape", default="7b", choices=("7b", "tiny"), help="default 7b")
    gpu.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default cuda")
    gpu.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="default fp16")
    gpu.add_argument("--questions", type=int, help="default 128")
    gpu.add_argument("--tokens", type=int, help="of an answer (default 16)")
    gpu.add_argument("--batches", type=int, nargs="+", metavar="SIZE", help="default 16 32 64")
    gpu.add_argument("--pictures", nargs="+", metavar="WIDTHxHEIGHT", help="default 336x336 640x480")
    gpu.add_argument("--seconds", type=float, help="after which no further round begins (default 240)")
    return parser.parse_args()


def main(description: str | None) -> None:
    arguments = read_arguments(description)
    with tempfile.TemporaryDirectory(prefix="bench-eval-") as work:
        (bench_gpu if arguments.gpu else bench_cpu)(arguments, Path(work))
