"""What is left to do, its description in a job file, and how it is cut into pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llava_ext.launch import count_parallel_runs, launch_command
from llava_ext.settings import Trainer
from pipeline.jobs import Job, run_jobs
from pipeline.plan import Plan
from robustmerge.stage.address import Address

T = TypeVar("T")

ONE_CPU = Trainer()


def once(plans: Sequence[Plan], list_one: Callable[[Plan], Sequence[tuple[Address, Any]]]) -> list[tuple[Address, Any]]:
    """What the lines ask for and is not complete, each address once."""
    wanted = {address.path: (address, value) for plan in plans for address, value in list_one(plan)}
    return [pair for pair in wanted.values() if not pair[0].is_complete()]


def item_of(stage: str, address: Address, settings: Any = None, **inputs: Any) -> dict:
    """The description of one stage's work, as a job file holds it."""
    described = {"stage": stage, "name": address.short, "address": address.to_json(), **inputs}
    if settings is not None:
        described["settings"] = dataclasses.asdict(settings)
    return described


def logs_of(plans: Sequence[Plan]) -> Path:
    return plans[0].root / "logs"


def cut_evenly(items: Sequence[T], costs: Sequence[float], pieces: int) -> list[list[tuple[T, float]]]:
    """At most so many consecutive pieces of about equal cost, none of them empty; each item with its cost."""
    found: list[list[tuple[T, float]]] = [[] for _ in range(pieces)]
    before, total = 0.0, sum(costs)
    for item, cost in zip(items, costs, strict=True):
        found[min(int(pieces * (before + cost / 2) / total), pieces - 1)].append((item, cost))
        before += cost
    return [piece for piece in found if piece]


def share_out(
    plans: Sequence[Plan], title: str, items: Sequence[dict], costs: Sequence[float], trainer: Trainer = ONE_CPU
) -> None:
    """Cut the items into one consecutive piece a process, of about equal cost, so that adapters change rarely.

    trainer: where and how the processes run; one of several processes does all items, one after the other.
    """
    if not items:
        return
    together = trainer.processes > 1
    side_by_side = 1 if together else min(plans[0].config.jobs, len(items))
    if together or trainer.device != "cpu":
        side_by_side = min(count_parallel_runs(trainer, side_by_side), side_by_side)
    launch = partial(launch_command, trainer)
    jobs = [
        Job(f"{title} {number}", [item for item, _ in piece], sum(cost for _, cost in piece), launch)
        for number, piece in enumerate(cut_evenly(items, costs, side_by_side), start=1)
    ]
    run_jobs(title, jobs, side_by_side, logs_of(plans))
