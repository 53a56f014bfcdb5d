"""The steps of the line, each over all configurations at once: what is complete is skipped beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from eval.settings import Task
from llava_ext.launch import count_side_by_side, launch_command
from llava_ext.settings import Trainer
from robustmerge.runs import Address
from robustmerge.settings import ConfigError, UserError, build
from scripts.commands import command, key_of
from scripts.fetching import convert, fetch_bases
from scripts.items import cut_evenly, item_of, logs_of, once
from scripts.jobs import Job, run_jobs
from scripts.line import Line, require, unfinished
from scripts.program import compose, list_groups
from scripts.read_config import read_config
from scripts.sources import Source

SHARED_BY_POINTS = (
    "profile",
    "jobs",
    "report",
    "logger",
    "bootstrap",
    "trainer",
    "protocol",
    "other_protocol",
    "limit",
    "ids",
)

ONE_CPU = Trainer()
T = TypeVar("T")

# Keys of common.yaml that say nothing of the merged model, and those that train_all need not have either.
NOT_OF_MERGING = ("source", "report", "out", "limit", "ids", "protocol", "other_protocol", "device")
NOT_OF_TRAINING = (*NOT_OF_MERGING, "merge", "methods", "strength_grid")


def plan(points: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines of all points of a sweep. Raises UserError for everything wrong in their configs, each thing once."""
    lines, problems = [], []
    for point in points:
        try:
            lines.append(Line(read_config(point)))
        except ConfigError as error:
            problems += [line for line in error.problems if line not in problems]
    if problems:
        raise ConfigError(problems)
    for key in SHARED_BY_POINTS:
        if len({repr(getattr(line.config, key)) for line in lines}) > 1:
            raise UserError(f"a sweep cannot run over {key}: all its points are made together and end in one report")
    return lines


def plan_with(own: type[T], point: Mapping[str, Any]) -> tuple[Line, T]:
    """The line, and a program's own keys as their dataclass. Raises ConfigError with the problems of both."""
    point = dict(point)
    values = {field.name: point.pop(field.name) for field in dataclasses.fields(own)}
    problems, made = [], []
    for make in (lambda: plan([point])[0], lambda: build(own, values, "")):
        try:
            made.append(make())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    line, request = made
    return line, request


def prepare(lines: Sequence[Line]) -> None:
    """Draw or read the data of every task."""
    todo = once(lines, lambda line: [(line.data(task), line.config.data(task)) for task in line.config.tasks])
    items = [item_of("prepare", address, settings) for address, settings in todo]
    run_jobs("prepare", [Job("data", items)] if items else [], 1, logs_of(lines))


def build_base(lines: Sequence[Line]) -> None:
    """Train the small base where there is one to train; a named checkpoint is fetched, or taken as it is."""
    fetch_bases(lines)
    trained = [line for line in lines if line.config.model.base is not None]
    needed = [line for line in trained if not line.base.is_complete()]
    corpora = once(
        needed, lambda line: [(line.corpus, dataclasses.replace(line.config.benchmark.corpus, jobs=line.config.jobs))]
    )
    items = [item_of("corpus", address, settings) for address, settings in corpora]
    run_jobs("corpus", [Job("data/base", items)] if items else [], 1, logs_of(lines))
    todo = once(needed, lambda line: [(line.base, line)])
    jobs = [
        Job(address.short, [item_of("base", address, line.config.model.base, corpus=str(line.corpus.path))])
        for address, line in todo
    ]
    run_jobs("base model", jobs, 1, logs_of(lines))


def _trainings(line: Line) -> list[tuple[Address, tuple[Line, tuple[Task, ...]]]]:
    seen = line.config.seen
    found = [(line.expert(task), (line, (task,))) for task in seen]
    if line.multi_task is not None:
        found.append((line.multi_task, (line, seen)))
    return found


def check_trainer(lines: Sequence[Line]) -> None:
    """Raises UserError, before anything long, if there is something to train and no device for it."""
    if once(lines, _trainings):
        count_side_by_side(lines[0].config.trainer, lines[0].config.jobs)


def train(lines: Sequence[Line]) -> None:
    """Train the experts and the multi-task model: side by side on CPU, the longest first."""
    jobs = []
    for address, (line, tasks) in once(lines, _trainings):
        settings = dataclasses.replace(line.config.expert(*tasks), base_name=line.base_name)
        data = {task.name: str(line.data(task).path) for task in tasks}
        item = item_of("train", address, settings, base=str(line.base.path), data=data)
        cost = sum(line.config.data(task).counts.train for task in tasks)
        jobs.append(Job(address.short, [item], cost, partial(launch_command, settings.trainer)))
    config = lines[0].config
    if jobs:
        run_jobs("train", jobs, count_side_by_side(config.trainer, config.jobs), logs_of(lines))


def check_experts(lines: Sequence[Line], multi_task: bool = True) -> None:
    """Raises UserError naming the trained models that are not there and the command that makes them."""
    for line in lines:
        if not line.config.out:  # a folder of the user's own may hold a full model
            line.check_methods()
        if not line.experts:
            raise UserError("there is no expert to merge: none of the chosen tasks is a seen one (tasks)")
        models = [*line.experts.values(), line.multi_task if multi_task else None]
        convert([line])
        train_all = train_all_command()
        if unfinished(models) == [line.multi_task]:
            train_all += "\nor leave it out: multi_task=false"
        require(models, "trained models are", train_all)


def train_all_command() -> str:
    """The command that makes the base and the experts which this command line asks for."""
    return command("train_all", lambda word: _is_common(word) and key_of(word) not in NOT_OF_TRAINING)


def make_command(source: Source) -> str:
    """The command that makes a source which is not there."""
    if source.kind != "merged":
        return train_all_command()
    return command("merge", lambda word: _is_common(word) and key_of(word) not in NOT_OF_MERGING)


def _is_common(word: str) -> bool:
    """Whether every program has the key: those of one program alone mean nothing to another."""
    return key_of(word) in {*compose("merge_eval", []), *list_groups(), "task"}


def merge(lines: Sequence[Line], choose: bool = False) -> None:
    """Merge the experts, once a method and point: side by side, and each on the cores that are left.

    choose: also at every strength that is to be chosen from.
    """

    def list_one(line: Line) -> list[tuple[Address, Any]]:
        methods = [*line.config.methods, *(source.method for source in (line.tried if choose else ()))]
        return [(line.merged(method), (line, method)) for method in methods]

    todo = once(lines, list_one)
    items = []
    workers = max(1, lines[0].config.jobs // max(1, len(todo)))
    for address, (line, method) in todo:
        experts = {name: str(expert.path) for name, expert in line.experts.items()}
        items.append(item_of("merge", address, method, experts=experts, workers=workers))
    share_out(lines, "merge", items, [1.0] * len(items))


def share_out(
    lines: Sequence[Line], title: str, items: Sequence[dict], costs: Sequence[float], trainer: Trainer = ONE_CPU
) -> None:
    """Cut the items into one consecutive piece a process, of about equal cost, so that adapters change rarely.

    trainer: where and how the processes run; one of several processes does all items, one after the other.
    """
    if not items:
        return
    together = trainer.processes > 1
    side_by_side = 1 if together else min(lines[0].config.jobs, len(items))
    if together or trainer.device != "cpu":
        side_by_side = min(count_side_by_side(trainer, side_by_side), side_by_side)
    launch = partial(launch_command, trainer)
    jobs = [
        Job(f"{title} {number}", [item for item, _ in piece], sum(cost for _, cost in piece), launch)
        for number, piece in enumerate(cut_evenly(items, costs, side_by_side), start=1)
    ]
    run_jobs(title, jobs, side_by_side, logs_of(lines))
