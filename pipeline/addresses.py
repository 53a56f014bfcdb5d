"""Where results of a configuration lie: every address, from the data to the scores.

    prepare -> base -> experts and multi-task model -> merge -> predict -> score

Planning imports no torch, so that a run with nothing to do ends within seconds. Several configurations (the points
of a sweep) share whatever has the same address.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.question_files import list_pictures
from data_prep.settings import GENERATOR, TaskData
from eval.metrics.caption_tokens import has_java
from eval.settings import CAPTION_NAMES, Generation, Scoring, Selection, Task, other_protocol
from llava_ext.original.names import WEIGHTS, is_original
from pipeline.config import Config
from pipeline.sources import Source
from robustmerge.hub.places import address_given
from robustmerge.method import MERGE_SCHEMA, Method, OutsideMethod
from robustmerge.stage.address import Address, address_file, address_folder, foreign
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import UserError

DRAWN = dict.fromkeys(("prepare", "corpus"), GENERATOR)
SCHEMAS = {**DRAWN, "base": 2, "train": 1, "convert": 1, "merge": MERGE_SCHEMA, "predict": 1, "score": 2}


class Addresses:
    """Where everything of one configuration lies, or will lie."""

    def __init__(self, config: Config):
        self.config = config
        self.root = config.root
        self.conversions: dict[Path, tuple[Address, Address]] = {}  # by what is made: it, and what it is made of

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
            return self.given(model.checkpoint)
        return self._folder("base", model.name, "base", model.base, {"corpus": self.corpus})

    @property
    def base_name(self) -> str:
        """What adapters call the base: the repository, or the folder's name."""
        named = self.config.model.checkpoint
        if named is None:
            return self.base.path.name
        return Path(named).name if Path(named).expanduser().exists() else named.partition("@")[0]

    @cached_property
    def _data(self) -> dict[str, Address]:
        """Raises UserError with every question file that is not there."""
        addresses, problems = {}, []
        for task in self.config.tasks:
            settings = self.config.data(task)
            try:
                addresses[task.name] = self._folder("data", task.name, "prepare", settings, self._own_files(settings))
            except UserError as error:
                problems += [line for line in str(error).split("\n") if line not in problems]
        if problems:
            raise UserError("\n".join(problems))
        return addresses

    def _own_files(self, settings: TaskData) -> dict[str, Address]:
        """The files of a task that is not drawn, and its pictures by name and size."""
        own = {}
        for split, file in settings.input_files.items():
            if not file.exists():
                raise UserError(f"{file} does not exist (task.{settings.task}.data.{split})")
            own[split] = foreign(file)
        if own:
            own["pictures"] = Address(self.root, self.root, {"stage": "foreign", "pictures": list_pictures(settings)})
        return own

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
        wanted = self.config.multi_task and self.config.trains and len(self.config.seen) > 1
        return self.expert(*self.config.seen) if wanted else None

    @cached_property
    def experts(self) -> dict[str, Address]:
        """What is merged, by name."""
        if self.config.experts is not None:
            return {name: self.usable(name, path) for name, path in self.config.experts}
        if self.config.expert_set == "released":
            return {task.name: self._released(task.name) for task in self.config.seen}
        return {task.name: self.expert(task) for task in self.config.seen}

    def _released(self, task: str) -> Address:
        """A folder in either format, or a repository of the Hub in LLaVA's own."""
        named = self.config.benchmark.released[task]
        folder = Path(named).expanduser()
        is_ours = (folder / WEIGHTS[0]).is_file() and not is_original(folder)  # what .bin holds may be damaged
        return foreign(folder, self.root) if is_ours else self._converted(task, self.given(named))

    def given(self, text: str) -> Address:
        """A folder, or a repository of the Hub in the state that this folder of results has first met it in."""
        return address_given(text, self.root, self.config.paths.pins)

    def usable(self, name: str, folder: Path) -> Address:
        """An adapter folder as it is, or what becomes of one in LLaVA's own format."""
        found = foreign(folder, self.root)
        return self._converted(name, found) if is_original(folder) else found

    def _converted(self, name: str, original: Address) -> Address:
        # Nobody's adapter is for a base that is trained here, which is only what stands when no model= is given.
        settings = {"base": self.base_name if self.config.model.base is None else ""}
        address = self._folder("experts", re.sub(r"[^\w.-]", "_", name), "convert", settings, {"original": original})
        self.conversions[address.path] = (address, original)
        return address

    def merged(self, method: Method | OutsideMethod) -> Address:
        """The adapter that a method makes of the experts."""
        return self._folder("merged", method.name, "merge", method, self.experts)

    def predictions(self, source: Source, task: Task, split: str = "test", protocol: str | None = None) -> Address:
        """The answers of a source to a task's test questions, or its val questions."""
        settings = self.generation(task, split, protocol)
        inputs = {"source": source.address, "base": self.base, "data": self.data(task)}
        return self._file(_kind("predictions", split), source, task, ".jsonl", "predict", settings, inputs)

    def generation(self, task: Task, split: str = "test", protocol: str | None = None) -> Generation:
        """How a task's questions are asked, by the protocol of the configuration if none is named."""
        model = self.config.model
        return task.under(protocol or self.config.protocol).generation(
            model.template, model.generation_batch, split, model.products, self.precision, self._only(task, split)
        )

    @property
    def precision(self) -> str:
        """Of the weights where answers are made: the model's, but bf16 for fp16 on a CPU, which is slow at it."""
        on_cpu = (self.config.device or self.config.trainer.device) == "cpu"
        return "bf16" if on_cpu and self.config.model.precision == "fp16" else self.config.model.precision

    def scoring(self, task: Task, split: str = "test", protocol: str | None = None) -> Scoring:
        """How a task's answers are scored."""
        asked = task.under(protocol or self.config.protocol)
        return asked.scoring(self._only(task, split), caption_tokenizer() if asked.metric in CAPTION_NAMES else "")

    def _only(self, task: Task, split: str) -> Selection:
        """`ids` are those of test questions, and each is asked of the task that has it."""
        if split != "test":
            return Selection(self.config.limit)
        found = self.ids_in(task)
        return Selection(ids=found) if found else self.config.only

    def ids_in(self, task: Task) -> tuple[str, ...]:
        """Those of `ids` that are test questions of a task; none while its questions are not prepared."""
        wanted, path = self.config.only.ids, self.questions(task) if self.config.only.ids else None
        if path is None or not path.exists():
            return ()
        known = {example.question_id for example in read_examples(path)}
        return tuple(name for name in wanted if name in known)

    def score(self, source: Source, task: Task, split: str = "test", protocol: str | None = None) -> Address:
        """The score of a source on a task."""
        inputs = {"predictions": self.predictions(source, task, split, protocol), "data": self.data(task)}
        settings = self.scoring(task, split, protocol)
        return self._file(_kind("scores", split), source, task, ".json", "score", settings, inputs)

    def other_score(self, source: Source, task: Task) -> Address | None:
        """The score of the same source under the other protocol.

        None where the answers that it needs are not there, and where it is not wanted.
        """
        if not self.config.other_protocol:
            return None
        other = other_protocol(self.config.protocol)
        return self.score(source, task, "test", other) if self._is_answered(source, task, other) else None

    def _is_answered(self, source: Source, task: Task, protocol: str) -> bool:
        return self.predictions(source, task, "test", protocol).is_complete()

    def questions(self, task: Task, split: str = "test") -> Path:
        """The test or val questions of a task."""
        return self.data(task).path / f"{split}.jsonl"


def caption_tokenizer() -> str:
    """`ptb`, the tokenizer of published caption scores, where there is Java to run it; otherwise `builtin`."""
    return "ptb" if has_java() else "builtin"


def _kind(kind: str, split: str) -> str:
    """The folder of answers or scores: those on val lie apart, so that nobody takes them for results."""
    return kind if split == "test" else f"{kind}/{split}"
