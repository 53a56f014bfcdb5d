"""The work whose cost the benchmark of answers measures: questions answered in a process of its own (child.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.predict import predict
from eval.questions import read_prompts
from eval.settings import Generation, Selection
from llava_ext.generate import Generator
from robustmerge.stage.address import Address


def answer(base: str, fast: bool, batch: int, limit: int, work: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Answer `limit` questions of every item with one load of the base, by the predict stage.

    items: each with source (an adapter folder, or None for the base alone), questions and settings (of Generation).
    work: a folder for the answers. Returns seconds of loading and of answering, CPU seconds
    of answering, and the number of answers.
    """
    started = time.perf_counter()
    generator = Generator(Path(base), items[0]["settings"]["template"], fast=fast)
    _warm_up(generator, items[0], batch)
    loaded, cpu = time.perf_counter(), time.process_time()
    source, count = object(), 0
    for number, item in enumerate(items):
        if item["source"] != source:
            source = item["source"]
            generator.use(Path(source) if source else None)
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


def _warm_up(generator: Generator, item: dict[str, Any], batch: int) -> None:
    """One batch before anything is timed: the first products of a process take longer."""
    questions, settings = Path(item["questions"]), item["settings"]
    generator(read_prompts(questions, settings["prompt"])[:batch], questions.parent, settings["max_new_tokens"])
    generator.features.clear()
