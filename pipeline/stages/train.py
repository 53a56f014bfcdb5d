"""The train stage: trains the expert of every seen task, and the multi-task model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eval.settings import Task
from llava_ext.launch import count_parallel_runs, find_meeting, launch_command
from llava_ext.quantized import require_bitsandbytes
from pipeline.events import say
from pipeline.jobs import Job, run_jobs
from pipeline.losses import describe_losses
from pipeline.models import FAMILIES
from pipeline.plan import Plan
from pipeline.program import command
from pipeline.terminal import format_seconds, print_results
from pipeline.wandb_live import show_losses
from pipeline.work_items import describe_item, drop_finished, run_side_by_side
from robustmerge.stage.address import Address
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.settings import UserError, build

Training = tuple[Address, tuple[Plan, tuple[Task, ...]]]  # the plan that asks for it, and the tasks trained on


def check_training(plans: Sequence[Plan]) -> None:
    """Raises UserError early if there is something to train and no rows, no device or no library for it."""
    unfinished = _list_unfinished(plans)
    if unfinished:
        _refuse_without_rows([(plan, task) for _, (plan, tasks) in unfinished for task in tasks])
        count_parallel_runs(plans[0].config.trainer, plans[0].config.jobs)
    for _, (plan, _) in unfinished:
        if plan.config.model.quantize is not None:
            require_bitsandbytes(plan.config.model.quantize)


def _refuse_without_rows(trained: Sequence[tuple[Plan, Task]]) -> None:
    """Raises UserError if a task that is read from files has none for training."""
    lacking: dict[str, str] = {}  # what to give, by task
    for plan, task in trained:
        settings = plan.config.data(task)
        if settings.generator is None and "train" not in settings.splits:
            release = f", or task.{task.name}.data.source=questions" if settings.release_in_use else ""
            lacking[task.name] = f"task.{task.name}.data.{'release.' if release else ''}train{release}"
    if lacking:
        ways = "; ".join(lacking.values())
        raise UserError(f"no rows to train on: {', '.join(lacking)} (give {ways}; or other tasks: 'tasks=[...]')")


def show_plans(plans: Sequence[Plan]) -> None:
    """Print what would be trained."""
    from pipeline.tools.training_plan import show_training_plan

    for plan in plans:
        show_training_plan(plan)


def is_first_machine(plans: Sequence[Plan]) -> bool:
    """Whether this machine is the first of its run, which alone sends to W&B what all have made."""
    nodes = plans[0].config.trainer.nodes
    return nodes == 1 or find_meeting(nodes).rank == 0


def train(plans: Sequence[Plan]) -> None:
    """Train the experts and the multi-task model, side by side on a CPU.

    There a process trains several of them, as loading the libraries takes a fifth as long as an expert of `tiny`. With
    an engine for GPUs each gets a new process, the longest first.
    """
    jobs, trainings = [], _list_unfinished(plans)
    for address, (plan, tasks) in trainings:
        settings = dataclasses.replace(plan.config.expert(*tasks), base_name=plan.base_name)
        data = {task.name: str(plan.data(task).path) for task in tasks}
        family = plan.config.model.family
        item = describe_item("train", address, settings, base=str(plan.base.path), data=data, family=family)
        cost = float(sum(plan.config.data(task).counts.train for task in tasks))
        jobs.append(Job(address.short, [item], cost, partial(launch_command, settings.trainer, name=address.hash8)))
    config, items = plans[0].config, [item for job in jobs for item in job.items]
    with show_losses([(address, plan) for address, (plan, _) in trainings] if is_first_machine(plans) else []):
        if config.trainer.engine == "cpu":
            run_side_by_side(plans[0], "train", items, [job.cost for job in jobs])
        elif jobs:
            several = config.trainer.nodes > 1
            logs = plans[0].logs / f"machine-{find_meeting(config.trainer.nodes).rank}" if several else plans[0].logs
            run_jobs("train", jobs, count_parallel_runs(config.trainer, config.jobs), logs, in_step=several)


def _list_unfinished(plans: Sequence[Plan]) -> list[Training]:
    trainings: list[Training] = []
    for plan in plans:
        trainings += [(plan.expert(task), (plan, (task,))) for task in plan.config.seen]
        if plan.multi_task is not None:
            trainings.append((plan.multi_task, (plan, plan.config.seen)))
    return drop_finished(trainings)


def work_train(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import Expert
        from llava_ext.train import train_expert

    data = {task: Path(folder) for task, folder in item["data"].items()}
    settings = build(Expert, item["settings"], "expert")
    training = FAMILIES[item["family"]].training()
    train_expert(Address.from_json(item["address"]), settings, Path(item["base"]), data, training, say)


def print_trained(plans: Sequence[Plan], started: float) -> None:
    """Print the closing lines of train_all.py and train.py."""
    models = {address.path: address for plan in plans for address in plan.trained_models}
    bases = dict.fromkeys(plan.base_name for plan in plans)
    print_results(models.values(), f"{len(models)} trained models on {', '.join(bases)}")
    for line in describe_losses(models.values()):
        print(line)
    print(f"took {format_seconds(time.monotonic() - started)}; next: {command('merge_eval')}")
