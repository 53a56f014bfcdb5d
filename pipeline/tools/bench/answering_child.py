"""The process of one measurement of answers: started by bench_cpu.py, never typed.

    python -m pipeline.tools.bench.answering_child '{"base": ..., "items": [...], ...}'

It prints a line when its libraries are loaded, waits for the end of its input, does its work, and prints what it took
as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def answer(base: str, fast: bool, batch: int, limit: int, work: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Answer `limit` questions of every item with one load of the base, by the predict stage.

    items: each with source (an adapter folder, or None for the base alone), questions and settings (of Generation).
    work: a folder for the answers. Returns seconds of loading and of answering, CPU seconds
    of answering, and the number of answers.
    """
    from eval.predict import predict
    from eval.settings import Generation, Selection
    from llava_ext.generate import Generator
    from robustmerge.stage.address import Address

    started = time.perf_counter()
    generator = Generator(Path(base), items[0]["settings"]["template"], fast=fast)
    _warm_up(generator, items[0], batch)
    loaded, cpu = time.perf_counter(), time.process_time()
    used, count = object(), 0
    for number, item in enumerate(items):
        if item["source"] != used:
            used = item["source"]
            generator.use(Path(used) if used else None)
        settings = Generation(**item["settings"], batch_size=batch, only=Selection(limit=limit))
        file = Path(work) / f"{os.getpid()}-{time.monotonic_ns()}-{number}.jsonl"
        predict(Address(Path(work), file, {"stage": "bench"}), settings, Path(item["questions"]), generator,
                lambda text: None, progress=False)  # fmt: skip
        count += len(file.read_text().splitlines())
    return {
        "loading": loaded - started,
        "answering": time.perf_counter() - loaded,
        "cpu": time.process_time() - cpu,
        "answers": count,
    }


def _warm_up(generator: Any, item: dict[str, Any], batch: int) -> None:
    """One batch before anything is timed: the first products of a process take longer."""
    from eval.questions import read_prompts

    questions, settings = Path(item["questions"]), item["settings"]
    generator(read_prompts(questions, settings["prompt"])[:batch], questions.parent, settings["max_new_tokens"])
    generator.features.clear()


def main() -> None:
    import llava_ext.generate  # noqa: F401  (what takes seconds is done before the others are waited for)

    print("ready", flush=True)
    sys.stdin.read()
    print(json.dumps(answer(**json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # Python's own end takes down every library


if __name__ == "__main__":
    main()
