"""The line: what is compared, what each method's strength is chosen from, and what `source=` means.

prepare -> base -> experts and multi-task model -> merge -> predict -> score -> report
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from eval.report.results import CHOSEN, Choice
from eval.settings import Task
from pipeline.addresses import Addresses
from pipeline.config import read_config
from pipeline.program import command, compose, key_of, list_groups
from pipeline.sources import SOURCE_FILES, Source, full_model, source_of_folder
from pipeline.strengths import choose, has_val
from robustmerge.method import Method, OutsideMethod, strength_of, times
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_examples, read_score
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, refuse, suggest

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
T = TypeVar("T")

# Keys of common.yaml that say nothing of the merged model, and those that train_all need not have either.
NOT_OF_MERGING = ("source", "report", "out", "limit", "ids", "protocol", "other_protocol", "device")
NOT_OF_TRAINING = (*NOT_OF_MERGING, "merge", "methods", "strength_grid")


class Plan(Addresses):
    """One configuration: its addresses, and the sources that it compares."""

    def check_methods(self) -> None:
        """Raises UserError for a method that writes full models: nothing here could be asked of one."""
        for method in self.config.methods:
            if method.out.format == "model":
                raise UserError(full_model(f"merged/{method.name}"))

    @cached_property
    def configured(self) -> tuple[Source, ...]:
        """What the table compares, but for what is chosen. Raises UserError for a method that writes full models."""
        self.check_methods()
        tasks = {task.name: task for task in self.config.tasks}
        everything = self.config.tasks
        found = [Source("zero_shot", "zero_shot", self.base, everything)]
        found += [
            Source(f"expert/{name}", "expert", address, (tasks[name],))
            for name, address in self.experts.items()
            if name in tasks
        ]
        if self.multi_task is not None:
            found.append(Source("multi_task", "multi_task", self.multi_task, everything))
        for method in self.config.methods:
            found.append(self._merged_source(method, everything))
        return tuple(found)

    def _merged_source(self, method: Method | OutsideMethod, tasks: tuple[Task, ...], variant: str = "") -> Source:
        return Source(f"merged/{method.name}", "merged", self.merged(method), tasks, method, variant)

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Everything that the table compares, in its order: behind each method the same at its chosen strength.

        Raises UserError for a method that writes full models, and where val scores are missing.
        """
        configured = self.configured
        chosen = {name: self._chosen_source(name) for name in self.choices}
        pairs = [(source, chosen.get(source.method.name) if source.method else None) for source in configured]
        return tuple(source for pair in pairs for source in pair if source is not None)

    @cached_property
    def candidates(self) -> dict[str, dict[float, Source]]:
        """By method, by factor of the update: what is asked the val questions."""
        grid = self.config.strength_grid
        if not grid:
            return {}
        asked = tuple(t for t in self.config.seen if has_val(self.questions(t, "val"), self.config.data(t)))
        if not asked:
            return {}
        free = [m for m in self.config.methods if strength_of(m) is not None and m.name not in self.config.fixed]
        return {m.name: {f: self._merged_source(times(m, f), asked) for f in grid} for m in free}

    @property
    def tried(self) -> list[Source]:
        """All candidates of all methods."""
        return [source for by_factor in self.candidates.values() for source in by_factor.values()]

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """By method: the strength with the best mean val score. Raises UserError where val scores are missing."""
        missing = unfinished(self.score(source, task, "val") for source in self.tried for task in source.tasks)
        if missing:
            make = command("merge_eval", lambda word: not word.startswith("source"))
            raise UserError(
                f"{len(missing)} val scores are missing, by which strengths are chosen; the first is "
                f"{missing[0].short}\nMake them with: {make}\nor leave the chosen strengths out: strength_grid=null"
            )
        return {
            name: choose({f: (strength_of(source.method), self._val_mean(source)) for f, source in by_factor.items()})
            for name, by_factor in self.candidates.items()
        }

    def _val_mean(self, source: Source) -> float:
        """Over the tasks that can be scored here: without Java some captions cannot, for no source."""
        values = [read_score(self.score(source, task, "val").path).value for task in source.tasks]
        return fmean([value for value in values if value is not None] or [0.0])

    def _chosen_source(self, name: str) -> Source:
        source = self.candidates[name][self.choices[name].factor]
        return dataclasses.replace(source, tasks=self.config.tasks, variant=CHOSEN)

    def choosing_addresses(self) -> list[Address]:
        """Everything that the choices rest on: merges, val answers and val scores."""
        pairs = [(source, task) for source in self.tried for task in source.tasks]
        asked = [address(*pair, "val") for pair in pairs for address in (self.predictions, self.score)]
        return [*(source.address for source in self.tried), *asked]

    def find_source(self, name: str | None) -> Source:
        """The source of that name, address or folder; with `ids`, on the tasks that have one of these questions.

        Raises UserError with the choices, and for an id that no task has.
        """
        source = self._named(name)
        prepared = [task for task in source.tasks if self.config.only.ids and self.questions(task).exists()]
        if len(prepared) < len(source.tasks) or not prepared:
            return source
        having = tuple(task for task in prepared if self.ids_in(task))
        known = {found for task in having for found in self.ids_in(task)}
        if unknown := [one for one in self.config.only.ids if one not in known]:
            example = read_examples(self.questions(prepared[0]))[0].question_id
            raise UserError(f"no task has a question {', '.join(unknown[:5])} (ids); ids are like {example}")
        return dataclasses.replace(source, tasks=having)

    def _named(self, name: str | None) -> Source:
        names = [source.name for source in self.configured]
        choices = suggest(name or "", [*names, *(f"merged/{method}@{CHOSEN}" for method in self.candidates)])
        choices += f", or give a folder with {' or '.join(SOURCE_FILES)}"
        if name is None:
            raise UserError(f"source=NAME is needed; {choices}")
        for method in self.candidates:
            if name == f"merged/{method}@{CHOSEN}":
                return self._chosen_source(method)
        for source in self.configured:
            if name in (source.name, source.address.short):
                return dataclasses.replace(source, tasks=self.config.tasks)
        for path in (Path(name).expanduser(), self.root / name):
            if any((path / file).exists() for file in SOURCE_FILES):
                return source_of_folder(self.usable(path.name, path), self.config.tasks)
            if (path / "config.json").exists():
                raise UserError(full_model(str(path)))
        if Path(name).expanduser().is_absolute():
            what = "holds no adapter" if Path(name).expanduser().is_dir() else "does not exist"
            raise UserError(f"the folder {name} {what} (source); {choices}")
        raise UserError(f"unknown source '{name}'; {choices}")


def unfinished(addresses: Iterable[Address | None]) -> list[Address]:
    """Those that are not complete, each once, in their order."""
    seen: dict[Path, Address] = {address.path: address for address in addresses if address is not None}
    return [address for address in seen.values() if not address.is_complete()]


def require(addresses: Iterable[Address | None], what: str, command: str) -> None:
    """Raises UserError that names what is missing and the command that makes it."""
    missing = unfinished(addresses)
    if missing:
        names = "\n".join(f"  {address.short}" for address in missing)
        raise UserError(f"{len(missing)} {what} missing:\n{names}\nMake them with: {command}")


def make_plans(points: Sequence[Mapping[str, Any]]) -> list[Plan]:
    """The lines of all points of a sweep. Raises UserError for everything wrong in their configs, each thing once."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    for point in points:
        try:
            plans.append(Plan(read_config(point)))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    refuse(problems)
    for key in SHARED_BY_POINTS:
        if len({repr(getattr(plan.config, key)) for plan in plans}) > 1:
            raise UserError(f"a sweep cannot run over {key}: all its points are made together and end in one report")
    return plans


def make_plan_with(own: type[T], point: Mapping[str, Any]) -> tuple[Plan, T]:
    """The line, and a program's own keys as their dataclass. Raises ConfigError with the problems of both."""
    point = dict(point)
    values = {field.name: point.pop(field.name) for field in dataclasses.fields(own)}
    problems: list[Problem] = []
    made: list[Any] = []
    for make in (lambda: make_plans([point])[0], lambda: build(own, values, "")):
        try:
            made.append(make())
        except ConfigError as error:
            problems += error.problems
    refuse(problems)
    plan, request = made
    return plan, request


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
