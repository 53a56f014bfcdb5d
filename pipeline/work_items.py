"""Items of unfinished work: which results are missing, their description in a job file, their division into jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from llava_ext.launch import count_parallel_runs, launch_command
from llava_ext.settings import Trainer
from pipeline.jobs import Job, run_jobs
from pipeline.plan import Plan
from robustmerge.stage.address import Address
from robustmerge.stage.settings import values_of

T = TypeVar("T")

ONE_CPU = Trainer()


def drop_finished(results: Iterable[tuple[Address, T]]) -> list[tuple[Address, T]]:
    """Drop complete results and repeated addresses. The second of a pair is any value that goes with the address."""
    unique = {address.path: (address, value) for address, value in results}
    return [pair for pair in unique.values() if not pair[0].is_complete()]


def describe_item(stage: str, address: Address, settings: Any = None, **inputs: Any) -> dict:
    """Describe one result to make, as an item of a job file."""
    item = {"stage": stage, "name": address.short, "address": address.to_json(), **inputs}
    if settings is not None:
        item["settings"] = values_of(settings)
    return item


def run_in_turn(plan: Plan, title: str, job: str, items: list[dict]) -> None:
    """Run the items one after the other, in one child process."""
    run_jobs(title, [Job(job, items)] if items else [], 1, plan.logs)


def run_side_by_side(
    plan: Plan, title: str, items: Sequence[dict], costs: Sequence[float], trainer: Trainer = ONE_CPU
) -> None:
    """Run the items in several child processes; each gets a consecutive piece of equal cost, so adapters change rarely.

    trainer: where and how the processes run; one of several processes does all items, one after the other.
    """
    if not items:
        return
    together = trainer.processes > 1
    side_by_side = 1 if together else min(plan.config.jobs, len(items))
    if together or trainer.device != "cpu":
        side_by_side = min(count_parallel_runs(trainer, side_by_side), side_by_side)
    launch = partial(launch_command, trainer)
    jobs = [
        Job(f"{title} {number}", [item for item, _ in piece], sum(cost for _, cost in piece), launch)
        for number, piece in enumerate(cut_evenly(items, costs, side_by_side), start=1)
    ]
    run_jobs(title, jobs, side_by_side, plan.logs)


def cut_evenly(items: Sequence[T], costs: Sequence[float], pieces: int) -> list[list[tuple[T, float]]]:
    """Cut items into at most `pieces` consecutive, non-empty pieces of about equal cost; each item with its cost."""
    cut: list[list[tuple[T, float]]] = [[] for _ in range(pieces)]
    before, total = 0.0, sum(costs)
    for item, cost in zip(items, costs, strict=True):
        cut[min(int(pieces * (before + cost / 2) / total), pieces - 1)].append((item, cost))
        before += cost
    return [piece for piece in cut if piece]
