"""The line: every address that a configuration asks for, and the order in which they come to exist.

    prepare -> base -> experts and multi-task model -> merge -> predict -> score -> report

Planning imports no torch, so that a run with nothing to do ends within seconds. Several configurations (the points
of a sweep) share whatever has the same address.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.own import list_pictures
from eval.settings import Task
from robustmerge.method import MERGE_SCHEMA, Method, OutsideMethod
from robustmerge.runs import Address, address_file, address_folder, foreign
from robustmerge.settings import UserError, suggest
from scripts.config import Config

SOURCE_FILES = ("adapter_config.json", "delta_config.json")
SCHEMAS = {"prepare": 1, "corpus": 1, "base": 1, "train": 1, "merge": MERGE_SCHEMA, "predict": 1, "score": 1}


@dataclass(frozen=True)
class Source:
    """What is evaluated: zero_shot | expert/<task> | multi_task | merged/<method> | any adapter or delta folder.

    address: of the adapter or the deltas; of the base for zero_shot. tasks: what it is evaluated on.
    """

    name: str
    kind: str
    address: Address
    tasks: tuple[Task, ...]
    method: Method | OutsideMethod | None = None

    @property
    def folder(self) -> str:
        """Where its predictions and scores lie: the name, with the hash of what it is."""
        return f"{self.name}-{self.address.hash8}"

    @property
    def adapter(self) -> Path | None:
        return None if self.kind == "zero_shot" else self.address.path


class Line:
    """All addresses of one configuration."""

    def __init__(self, config: Config):
        self.config = config
        self.root = config.root

    def _folder(self, kind: str, name: str, stage: str, settings: Any, inputs: dict[str, Address]) -> Address:
        return address_folder(self.root, kind, name, stage, SCHEMAS[stage], settings, inputs)

    def _file(
        self,
        kind: str,
        source: Source,
        task: Task,
        suffix: str,
        stage: str,
        settings: Any,
        inputs: dict[str, Address],
    ) -> Address:
        folder = self.root / kind / source.folder
        return address_file(self.root, folder, task.name, suffix, stage, SCHEMAS[stage], settings, inputs)

    @cached_property
    def corpus(self) -> Address:
        """The data that the small base model is trained on."""
        return self._folder("data", "base", "corpus", self.config.benchmark.corpus, {})

    @cached_property
    def base(self) -> Address:
        """The base model: trained here, or a checkpoint from elsewhere."""
        model = self.config.model
        if model.base is None:
            return foreign(Path(model.checkpoint))
        return self._folder("base", model.name, "base", model.base, {"corpus": self.corpus})

    @cached_property
    def _data(self) -> dict[str, Address]:
        addresses = {}
        for task in self.config.tasks:
            settings = self.config.data(task)
            own = {split: foreign(file) for split, file in settings.question_files.items()}
            if own:
                pictures = {"stage": "foreign", "pictures": list_pictures(settings)}
                own["pictures"] = Address(self.root, self.root, pictures)
            addresses[task.name] = self._folder("data", task.name, "prepare", settings, own)
        return addresses

    def data(self, task: Task) -> Address:
        """The prepared questions and pictures of a task."""
        return self._data[task.name]

    def expert(self, *tasks: Task) -> Address:
        """The expert of one task; the multi-task model of several."""
        settings = self.config.expert(*tasks)
        inputs = {"base": self.base} | {f"data/{task.name}": self.data(task) for task in tasks}
        return self._folder("experts", settings.name, "train", settings, inputs)

    @cached_property
    def multi_task(self) -> Address | None:
        """The model trained on all seen tasks; None where there is none to compare with."""
        wanted = self.config.multi_task and self.config.experts is None and len(self.config.seen) > 1
        return self.expert(*self.config.seen) if wanted else None

    @cached_property
    def experts(self) -> dict[str, Address]:
        """What is merged, by name."""
        if self.config.experts is not None:
            return {name: foreign(path, self.root) for name, path in self.config.experts}
        return {task.name: self.expert(task) for task in self.config.seen}

    def merged(self, method: Method | OutsideMethod) -> Address:
        """The adapter that a method makes of the experts."""
        return self._folder("merged", method.name, "merge", method, self.experts)

    def check_methods(self) -> None:
        """Raises UserError for a method that writes full models: nothing here could be asked of one."""
        for method in self.config.methods:
            if method.out.format == "model":
                raise UserError(full_model(f"merged/{method.name}"))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Everything that the table compares, in its order. Raises UserError for a method that writes full models."""
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
            found.append(Source(f"merged/{method.name}", "merged", self.merged(method), everything, method))
        return tuple(found)

    def find_source(self, name: str | None) -> Source:
        """The source of that name, address or folder. Raises UserError with the choices."""
        choices = suggest(name or "", (source.name for source in self.sources))
        choices += f", or give a folder with {' or '.join(SOURCE_FILES)}"
        if name is None:
            raise UserError(f"source=NAME is needed; {choices}")
        for source in self.sources:
            if name in (source.name, source.address.short):
                return dataclasses.replace(source, tasks=self.config.tasks)
        for path in (Path(name).expanduser(), self.root / name):
            if any((path / file).exists() for file in SOURCE_FILES):
                return self._source_of_folder(foreign(path, self.root))
            if (path / "config.json").exists():
                raise UserError(full_model(str(path)))
        raise UserError(f"unknown source '{name}'; {choices}")

    def _source_of_folder(self, address: Address) -> Source:
        """An adapter or delta folder as a source; a result of this run keeps its own name."""
        kind, _, rest = address.short.partition("/")
        name = rest.removesuffix(f"-{address.hash8}")
        if kind == "merged" and name != rest:
            return Source(f"merged/{name}", "merged", address, self.config.tasks)
        if kind == "experts" and name != rest:
            multi_task = name == "multi_task"
            found = ("multi_task", "multi_task") if multi_task else (f"expert/{name}", "expert")
            return Source(*found, address, self.config.tasks)
        return Source(f"adapter/{address.path.name}", "adapter", address, self.config.tasks)

    def predictions(self, source: Source, task: Task) -> Address:
        """The answers of a source to a task's test questions."""
        settings = task.generation(self.config.model.template, self.config.model.generation_batch)
        inputs = {"source": source.address, "base": self.base, "data": self.data(task)}
        return self._file("predictions", source, task, ".jsonl", "predict", settings, inputs)

    def score(self, source: Source, task: Task) -> Address:
        """The score of a source on a task."""
        inputs = {"predictions": self.predictions(source, task), "data": self.data(task)}
        return self._file("scores", source, task, ".json", "score", task.scoring(), inputs)

    def questions(self, task: Task) -> Path:
        """The test questions of a task."""
        return self.data(task).path / "test.jsonl"


def full_model(name: str) -> str:
    """Why a full model is no source, and what to do."""
    return (
        f"{name} is a full model, and a source is an adapter or delta folder for the base. Evaluate it as a base of "
        "its own (model.base=null +model.checkpoint=FOLDER source=zero_shot), "
        "or merge with merge.out.format=adapter or delta"
    )


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
