"""The prepare stage: questions and pictures of every task, drawn or read from files."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.events import say
from pipeline.plan import Plan
from pipeline.work_items import describe_item, drop_finished, run_in_turn
from robustmerge.stage.address import Address
from robustmerge.stage.settings import build


def prepare(plans: Sequence[Plan]) -> None:
    """Draw or read the data of every task."""
    wanted = ((plan.data(task), plan.config.data(task)) for plan in plans for task in plan.config.tasks)
    items = [describe_item("prepare", address, settings) for address, settings in drop_finished(wanted)]
    run_in_turn(plans[0], "prepare", "data", items)


def work_prepare(item: dict) -> None:
    from data_prep.prepare import prepare
    from data_prep.settings import TaskData

    prepare(Address.from_json(item["address"]), build(TaskData, item["settings"], "data"), say)
