"""The line: every address that a configuration asks for, and the order in which they come to exist.

    prepare -> base -> experts and multi-task model -> merge -> predict -> score -> report

Planning imports no torch, so that a run with nothing to do ends within seconds. Several configurations (the points
of a sweep) share whatever has the same address.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from data_prep.own import list_pictures
from data_prep.settings import GENERATOR
from eval.results import CHOSEN, Choice
from eval.settings import CAPTION_NAMES, PROTOCOLS, Generation, Scoring, Selection, Task
from robustmerge.method import MERGE_SCHEMA, Method, OutsideMethod, strength_of, times
from robustmerge.records import read_score
from robustmerge.runs import Address, address_file, address_folder, foreign
from robustmerge.settings import UserError, suggest
from scripts.choosing import choose, has_val
from scripts.commands import command
from scripts.config import Config
from scripts.sources import SOURCE_FILES, Source, full_model, source_of_folder

DRAWN = dict.fromkeys(("prepare", "corpus"), GENERATOR)
SCHEMAS = {**DRAWN, "base": 2, "train": 1, "merge": MERGE_SCHEMA, "predict": 1, "score": 1}


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
            own = {split: foreign(file) for split, file in settings.input_files.items()}
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
        asked = tuple(t for t in self.config.seen if has_val(self.questions(t, "val"), self.config.data(t)))
        grid = self.config.strength_grid if asked else None
        free = [m for m in self.config.methods if strength_of(m) is not None and m.name not in self.config.fixed]
        return {m.name: {f: self._merged_source(times(m, f), asked) for f in grid} for m in free if grid}

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
        """The source of that name, address or folder. Raises UserError with the choices."""
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
                return source_of_folder(foreign(path, self.root), self.config.tasks)
            if (path / "config.json").exists():
                raise UserError(full_model(str(path)))
        raise UserError(f"unknown source '{name}'; {choices}")

    def predictions(self, source: Source, task: Task, split: str = "test", protocol: str | None = None) -> Address:
        """The answers of a source to a task's test questions, or its val questions."""
        settings = self.generation(task, split, protocol)
        inputs = {"source": source.address, "base": self.base, "data": self.data(task)}
        return self._file(_kind("predictions", split), source, task, ".jsonl", "predict", settings, inputs)

    def generation(self, task: Task, split: str = "test", protocol: str | None = None) -> Generation:
        """How a task's questions are asked, by the protocol of the configuration if none is named."""
        model = self.config.model
        return task.under(protocol or self.config.protocol).generation(
            model.template, model.generation_batch, split, model.products, model.precision, self._only(split)
        )

    def scoring(self, task: Task, split: str = "test", protocol: str | None = None) -> Scoring:
        """How a task's answers are scored."""
        asked = task.under(protocol or self.config.protocol)
        return asked.scoring(self._only(split), caption_tokenizer() if asked.metric in CAPTION_NAMES else "")

    def _only(self, split: str) -> Selection:
        """`ids` are those of test questions."""
        return self.config.only if split == "test" else Selection(self.config.limit)

    def score(self, source: Source, task: Task, split: str = "test", protocol: str | None = None) -> Address:
        """The score of a source on a task."""
        inputs = {"predictions": self.predictions(source, task, split, protocol), "data": self.data(task)}
        settings = self.scoring(task, split, protocol)
        return self._file(_kind("scores", split), source, task, ".json", "score", settings, inputs)

    def other_score(self, source: Source, task: Task) -> Address | None:
        """The score of the same source under the other protocol; None where the answers it needs are not there."""
        other = self.other_protocol
        return self.score(source, task, "test", other) if self._is_answered(source, task, other) else None

    @property
    def other_protocol(self) -> str:
        return next(name for name in PROTOCOLS if name != self.config.protocol)

    def _is_answered(self, source: Source, task: Task, protocol: str) -> bool:
        return self.predictions(source, task, "test", protocol).is_complete()

    def questions(self, task: Task, split: str = "test") -> Path:
        """The test or val questions of a task."""
        return self.data(task).path / f"{split}.jsonl"


@lru_cache(maxsize=1)
def caption_tokenizer() -> str:
    """`ptb`, the tokenizer of published caption scores, where there is Java to run it; otherwise `builtin`."""
    from eval.caption_tokens import has_java

    return "ptb" if has_java() else "builtin"


def _kind(kind: str, split: str) -> str:
    """The folder of answers or scores: those on val lie apart, so that nobody takes them for results."""
    return kind if split == "test" else f"{kind}/{split}"


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
