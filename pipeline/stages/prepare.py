"""The prepare stage: questions and pictures of every task, drawn or read from files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_prep.labelled_pictures import list_patterns
from data_prep.settings import TaskData
from eval.settings import METRIC_NAMES, Task, other_protocol
from pipeline.events import say
from pipeline.plan import Plan
from pipeline.work_items import describe_item, drop_finished, run_in_turn
from robustmerge.hub.pins import DATASET
from robustmerge.hub.places import fetch, find_place
from robustmerge.stage.address import Address
from robustmerge.stage.records import Example
from robustmerge.stage.settings import build


def prepare(plans: Sequence[Plan]) -> None:
    """Draw or read the data of every task, after fetching what is on the Hub."""
    wanted = ((plan.data(task), (plan, task)) for plan in plans for task in plan.config.tasks)
    items = [
        describe_item("prepare", address, _fetch(plan, task), parsers=_list_parsers(plan, task))
        for address, (plan, task) in drop_finished(wanted)
    ]
    run_in_turn(plans[0], "prepare", "data", items)


def _fetch(plan: Plan, task: Task) -> TaskData:
    """The settings of a task's data, of which a dataset is a folder on this machine."""
    settings = plan.config.data(task)
    if settings.dataset is None:
        return settings
    files = [pattern for split in settings.splits for pattern in list_patterns(settings, split)]
    folder = fetch(find_place(settings.dataset, DATASET), files, plan.config.paths.pins)
    return dataclasses.replace(settings, dataset=str(folder))


def _list_parsers(plan: Plan, task: Task) -> dict[str, list[str]]:
    """The parsers by which the answers in a split are compared with those of a model, by either protocol.

    All of them, whatever is scored now, as the data do not depend on that.
    """
    protocols = (plan.config.protocol, other_protocol(plan.config.protocol, task.has_classes))
    scored = [task.under(protocol) for protocol in protocols]
    return dict.fromkeys(("test", "val"), sorted({one.parse for one in scored if one.metric in METRIC_NAMES}))


def work_prepare(item: dict) -> None:
    from data_prep.prepare import prepare
    from eval.questions import explain_unreadable

    def check(split: str, example: Example) -> str:
        problems = (explain_unreadable(parse, example) for parse in item["parsers"].get(split, []))
        return next(filter(None, problems), "")

    prepare(Address.from_json(item["address"]), build(TaskData, item["settings"], "data"), say, check)
