"""What answering costs: batched answers beside a plain loop."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.tools.bench.table import describe_machine
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "pillow")


def bench_cpu(asked: argparse.Namespace) -> None:
    """Measure on a CPU; what is measured is saved after every round."""
    from pipeline.tools.bench.answering_cpu import Plan, bench, draw_run, find_run, table_of

    names = ("limit", "batch", "sources", "runs")
    plan = Plan(**{name: getattr(asked, name) for name in names if getattr(asked, name) is not None})
    if plan.sources < 2:
        raise UserError(f"sources are compared with each other, so two at least, got {plan.sources} (--sources)")
    known = REPOSITORY / "runs" / "mini-tiny"
    place = None if asked.random else asked.run or (known if (known / "merged").is_dir() else None)
    out = asked.out or REPOSITORY / "results" / "bench_eval"
    with tempfile.TemporaryDirectory(prefix="bench-eval-") as work:
        run = find_run(place.resolve(), plan.sources) if place else draw_run(Path(work), plan.sources, plan.limit)
        for found in bench(plan, run, Path(work), tell):
            save(out, {"made": describe_machine(PACKAGES), **found}, table_of(found))
    print(f"{table_of(found)}\nsaved as {out}/table.md and table.json")


def bench_gpu(asked: argparse.Namespace) -> None:
    """Measure on a GPU; what is measured is saved after every round. Raises UserError if there is no GPU."""
    import torch

    from pipeline.tools.bench.answering_gpu import Plan, bench, table_of

    if asked.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device cpu --gpu-shape tiny runs the same code")
    names = ("device", "dtype", "questions", "tokens", "runs", "seconds")
    chosen: dict[str, Any] = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    chosen |= {"batches": tuple(asked.batches)} if asked.batches else {}
    chosen |= {"pictures": tuple(map(_size_of, asked.pictures))} if asked.pictures else {}
    made = describe_machine(PACKAGES) | {"gpu": torch.cuda.get_device_name() if asked.device == "cuda" else None}
    out = asked.out or REPOSITORY / "results" / "bench_eval" / "gpu"
    with tempfile.TemporaryDirectory(prefix="bench-eval-") as work:
        for found in bench(Plan(shape=asked.gpu_shape, **chosen), Path(work), tell):
            save(out, {"made": made, **found}, table_of(found))
    print(f"{table_of(found)}\nsaved as {out}/table.md and table.json")


def tell(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


def save(folder: Path, found: dict[str, Any], table: str) -> None:
    """Write table.json and table.md, the latter with where it was measured."""
    made = found["made"]
    libraries = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    gpu = f"{made['gpu']}, " if made.get("gpu") else ""
    commit = f"commit {(made['commit'] or 'unknown')[:7]}{' with changes' if made['dirty'] else ''}"
    place = f"{gpu}{made['processor']}, {made['cores']} cores, Python {made['python']}, {libraries}, {commit}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.json", json.dumps(found, indent=1) + "\n")
    write_atomically(folder / "table.md", f"{table}\nMeasured on {place}.\n")


def _size_of(text: str) -> tuple[int, int]:
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
    asked = read_arguments(description)
    (bench_gpu if asked.gpu else bench_cpu)(asked)
