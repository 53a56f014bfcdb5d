"""Prepare: the questions and pictures of every task, drawn or read from files."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.jobs import Job, run_jobs, say
from pipeline.plan import Plan
from pipeline.todo import item_of, logs_of, once
from robustmerge.stage.address import Address
from robustmerge.stage.settings import build


def prepare(plans: Sequence[Plan]) -> None:
    """Draw or read the data of every task."""
    todo = once(plans, lambda plan: [(plan.data(task), plan.config.data(task)) for task in plan.config.tasks])
    items = [item_of("prepare", address, settings) for address, settings in todo]
    run_jobs("prepare", [Job("data", items)] if items else [], 1, logs_of(plans))


def work_prepare(item: dict) -> None:
    from data_prep.prepare import prepare
    from data_prep.settings import TaskData

    prepare(Address.from_json(item["address"]), build(TaskData, item["settings"], "data"), say)
