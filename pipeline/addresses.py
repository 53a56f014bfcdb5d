"""Addresses of all results of a configuration, from the data to the scores: which folder or file each lies in.

    prepare -> base -> experts and multi-task model -> merge -> predict -> score

Planning imports no torch, so that a run with nothing to do ends within seconds. Several configurations (the points
of a sweep) share whatever has the same address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from clip_ext.settings import ClipBase
from data_prep.labelled_pictures import list_sizes
from data_prep.rows import list_pictures
from data_prep.settings import GENERATOR, LABEL_GENERATOR, BaseCorpus, TaskData, load_release, version_of
from eval.metrics.caption_tokens import has_java
from eval.settings import CAPTION_NAMES, Generation, Scoring, Selection, Task
from llava_ext.packaged import PACKAGES, find_packaged
from llava_ext.settings import AlignedBase
from pipeline.config import Config
from pipeline.sources import EvalSet, Source
from robustmerge.formats.adapter_config import WEIGHT_FILES
from robustmerge.formats.llava.names import is_original
from robustmerge.hub.pins import DATASET, Repository
from robustmerge.hub.places import address_repository, fetch_adapter, find_address, find_place
from robustmerge.method import MERGE_SCHEMA, AnyMethod
from robustmerge.stage.address import Address, address_file, address_folder, address_foreign
from robustmerge.stage.files import expand, require_file
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import Problem, UserError, refuse

SCHEMAS = {
    "prepare": 3,  # from files; of drawn data it is the generator's version
    "corpus": GENERATOR,
    "captions": LABEL_GENERATOR,
    "pretrain": 1,
    "base": 3,
    "align": 1,
    "join": 1,
    "clip_base": 1,
    "train": 1,
    "convert": 1,
    "merge": MERGE_SCHEMA,
    "predict": 1,
    "score": 2,
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in the format of PEFT. original: the one in LLaVA's format that it is converted from, if any."""

    address: Address
    original: Address | None = None


class BasePart(NamedTuple):
    """A step to a base that is made here. settings: of its stage; inputs: what the stage reads, by name."""

    address: Address
    settings: Any
    inputs: dict[str, Address]

    @property
    def stage(self) -> str:
        return self.address.identity["stage"]


class Addresses:
    """The addresses of all results of one configuration, whether they exist yet or not."""

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
        file = self.root / kind / source.folder / f"{task.name}{suffix}"
        return address_file(self.root, file, stage, SCHEMAS[stage], settings, inputs)

    @cached_property
    def corpus(self) -> Address:
        """The data that the small base model is trained on."""
        corpus = self.config.benchmark.corpus
        return self._folder("data", "base", "corpus" if isinstance(corpus, BaseCorpus) else "captions", corpus, {})

    @cached_property
    def language(self) -> Address:
        """The pretrained language model of a base that is put together."""
        base = self.config.model.trained_base
        assert isinstance(base, AlignedBase), "only such a base is put together"
        if base.language in PACKAGES:
            return address_foreign(find_packaged(base.language), self.root)
        return self._given_as("model.base.language", base.language)

    @cached_property
    def base_parts(self) -> list[BasePart]:
        """The steps to a base that is trained or put together here, in their order; empty for a checkpoint."""
        base, name = self.config.model.trained_base, self.config.model.name
        if base is None:
            return []
        if isinstance(base, AlignedBase) and not base.train:
            advice = "; model.base.train=true trains an alignment here"
            alignment = self._given_as("model.base.alignment", base.alignment, advice)
            return [self._part(name, "join", {}, language=self.language, alignment=alignment)]
        settings = replace(self.config.benchmark.corpus, jobs=self.config.jobs)
        corpus = BasePart(self.corpus, settings, {})
        if isinstance(base, ClipBase):
            return [corpus, self._part(name, "clip_base", base, corpus=self.corpus)]
        if isinstance(base, AlignedBase):
            tower = self._given_as("model.base.tower", base.tower)
            read = {"corpus": self.corpus, "language": self.language, "tower": tower}
            aligned = self._part(f"{name}_alignment", "align", base, **read)
            joined = self._part(name, "join", {}, language=self.language, alignment=aligned.address)
            return [corpus, aligned, joined]
        # Bases that differ in what they know share their pretraining.
        pretrained = self._part(f"{name}_pretrained", "pretrain", base.pretraining, corpus=self.corpus)
        trained = self._part(name, "base", base, pretrained=pretrained.address, corpus=self.corpus)
        return [corpus, pretrained, trained]

    def _part(self, name: str, stage: str, settings: Any, **inputs: Address) -> BasePart:
        return BasePart(self._folder("base", name, stage, settings, inputs), settings, inputs)

    @cached_property
    def base(self) -> Address:
        """The base model: a checkpoint, or trained or put together here."""
        model = self.config.model
        if self.base_parts:
            return self.base_parts[-1].address
        advice = "; model.base.train=true trains a base here" if model.base is not None else ""
        return self._given_as("model.checkpoint", model.checkpoint, advice)

    @property
    def base_addresses(self) -> list[Address]:
        """The base, preceded by the steps that lead to it if it is made here."""
        return [*(part.address for part in self.base_parts[:-1]), self.base]

    @property
    def base_name(self) -> str:
        """The name of the base in adapter configs: the repository, or the folder's name."""
        named = self.config.model.checkpoint
        if named is None or self.config.model.trained_base is not None:
            return self.base.path.name
        return Path(named).name if expand(named).exists() else named.partition("@")[0]

    @cached_property
    def _data(self) -> dict[str, Address]:
        """The prepared data of every task, by name. Raises UserError with every question file that is missing."""
        addresses, problems = {}, []
        for task in self.config.tasks:
            settings = self.config.data(task)
            schema = SCHEMAS["prepare"] if settings.generator is None else version_of(settings.generator)
            try:
                inputs = self._input_files(settings)
                addresses[task.name] = address_folder(self.root, "data", task.name, "prepare", schema, settings, inputs)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))
        return addresses

    def _input_files(self, settings: TaskData) -> dict[str, Address]:
        """The input files of a task that is read from files, and its pictures by name and size."""
        if settings.dataset is not None:
            return self._input_splits(settings, find_place(settings.dataset, DATASET))
        inputs = {}
        for name, file in settings.named_files.items():
            what = f"a file of questions (task.{settings.task}.data.{name.partition('/')[0]})"
            inputs[name] = address_foreign(require_file(file, what))
        if inputs:
            identity = {"stage": "foreign", "pictures": list_pictures(settings)}
            inputs["pictures"] = Address(self.root, self.root, identity)
        if (release := settings.release_in_use) is not None:
            identity = {"stage": "foreign", "release": release.name}
            identity |= {"version": load_release(release.name).VERSION, "splits": settings.splits}
            inputs["release"] = Address(self.root, self.root, identity)
        return inputs

    def _input_splits(self, settings: TaskData, place: Path | Repository) -> dict[str, Address]:
        """The splits of a dataset: a folder's files by name and size, or a part of a repository's commit."""
        if isinstance(place, Path):
            sizes = list_sizes(settings, place)
            return {split: Address(self.root, place, {"stage": "foreign", "files": sizes[split]}) for split in sizes}
        source = address_repository(place, self.root, self.config.paths.pins)
        parts = {split: {"subset": settings.subset, "split": name} for split, name in settings.splits.items()}
        return {split: replace(source, identity={**source.identity, **part}) for split, part in parts.items()}

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

    @property
    def trained_models(self) -> list[Address]:
        """The experts, and the multi-task model where there is one to compare with."""
        return [*self.experts.values(), *([self.multi_task] if self.multi_task else [])]

    @property
    def experts(self) -> dict[str, Address]:
        """The adapters to be merged, by name."""
        return {name: adapter.address for name, adapter in self.adapters.items()}

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """The experts by name, each with what it is converted from."""
        if self.config.experts is not None:
            return self._given_experts(self.config.experts)
        if self.config.expert_set == "released":
            return {task.name: self._released(task.name) for task in self.config.seen}
        return {task.name: Adapter(self.expert(task)) for task in self.config.seen}

    def _given_experts(self, places: Sequence[tuple[str, Path | Repository]]) -> dict[str, Adapter]:
        """The user's own adapters, in either format; those of the Hub are fetched, as their files identify them."""
        experts: dict[str, Adapter] = {}
        problems: list[Problem] = []
        for name, place in places:
            try:
                experts[name] = self.find_adapter(name, fetch_adapter(place, self.config.paths.pins))
            except UserError as error:
                problems.append(Problem(f"expert '{name}': {error}", "experts"))
        refuse(problems)
        return experts

    def _released(self, task: str) -> Adapter:
        """A released expert: a folder in either format, or a Hub repository, which for a LLaVA is in LLaVA's own."""
        named = self.config.benchmark.released[task]
        if self.config.model.kind.answers_with_classes:
            return self.find_adapter(task, fetch_adapter(find_place(named), self.config.paths.pins))
        folder = expand(named)
        is_ours = (folder / WEIGHT_FILES[0]).is_file() and not is_original(folder)  # what .bin holds may be damaged
        return Adapter(address_foreign(folder, self.root)) if is_ours else self._converted(task, self.given(named))

    def given(self, text: str) -> Address:
        """The address of a folder, or of a Hub repository at the commit that was pinned when it was first named."""
        return find_address(text, self.root, self.config.paths.pins)

    def _given_as(self, key: str, value: str | None, advice: str = "") -> Address:
        """The address that a key names. Raises UserError with the key and the advice if there is none."""
        try:
            return self.given(str(value))
        except UserError as error:
            raise UserError(f"{error} ({key}){advice}") from error

    def find_adapter(self, name: str, folder: Path) -> Adapter:
        """The adapter in a folder: itself, or for LLaVA's format the result of its conversion."""
        address = address_foreign(folder, self.root)
        return self._converted(name, address) if is_original(folder) else Adapter(address)

    def _converted(self, name: str, original: Address) -> Adapter:
        # No outside adapter can belong to a small model of ours: its name is not checked.
        settings = {"base": self.base_name if self.config.model.base is None else ""}
        name = re.sub(r"[^\w.-]", "_", name)
        return Adapter(self._folder("experts", name, "convert", settings, {"original": original}), original)

    @property
    def merged_experts(self) -> dict[str, Address]:
        """The experts that are merged: all of them, or the first `merge_count` in an order that the seed draws.

        So the merged experts of a smaller count are always among those of a larger one.
        """
        order = sorted(self.experts, key=lambda name: sha256(f"{self.config.seed}/{name}".encode()).digest())
        chosen = order[: self.config.merge_count]
        return {name: address for name, address in self.experts.items() if name in chosen}

    def merged(self, method: AnyMethod) -> Address:
        """The adapter that a method makes of the experts."""
        return self._folder("merged", method.name, "merge", method, self.merged_experts)

    def test_set(self, task: Task) -> EvalSet:
        """A task's test questions, by the protocol of the configuration."""
        return EvalSet(task, "test", self.config.protocol)

    def val_set(self, task: Task) -> EvalSet:
        """A task's val questions, by the protocol of the configuration."""
        return EvalSet(task, "val", self.config.protocol)

    def questions(self, eval_set: EvalSet) -> Path:
        """The file of an evaluation set's questions."""
        return self.data(eval_set.task).path / f"{eval_set.split}.jsonl"

    def predictions(self, source: Source, eval_set: EvalSet) -> Address:
        """The answers of a source to the questions of an evaluation set."""
        inputs = {"source": source.address, "base": self.base, "data": self.data(eval_set.task)}
        inputs |= {f"data/{task.name}": self.data(task) for task in self.pooled(eval_set)}
        kind = _kind("predictions", eval_set.split)
        return self._file(kind, source, eval_set.task, ".jsonl", "predict", self.generation(eval_set), inputs)

    def generation(self, eval_set: EvalSet) -> Generation:
        """Everything that changes the answers to an evaluation set."""
        model, task = self.config.model, eval_set.task_by_protocol
        return Generation(
            task=task.name,
            prompt=task.prompt,
            template=model.template,
            max_new_tokens=task.max_new_tokens,
            batch_size=model.generation_batch,
            split=eval_set.split,
            products=model.products,
            image=task.image,
            precision=self.precision,
            only=self._selection(eval_set),
            pooled={task.name: task.prompt for task in self.pooled(eval_set)},
        )

    def pooled(self, eval_set: EvalSet) -> tuple[Task, ...]:
        """The tasks whose classes an answer may name; empty if only its own task's classes are candidates."""
        return self.config.seen if eval_set.protocol == "joint" else ()

    @property
    def precision(self) -> str:
        """Precision of the weights in generation: the model's, but bf16 in place of fp16 on a CPU (slow at fp16)."""
        on_cpu = (self.config.device or self.config.trainer.device) == "cpu"
        return "bf16" if on_cpu and self.config.model.precision == "fp16" else self.config.model.precision

    def score(self, source: Source, eval_set: EvalSet) -> Address:
        """The score of a source on an evaluation set."""
        inputs = {"predictions": self.predictions(source, eval_set), "data": self.data(eval_set.task)}
        kind = _kind("scores", eval_set.split)
        return self._file(kind, source, eval_set.task, ".json", "score", self.scoring(eval_set), inputs)

    def scoring(self, eval_set: EvalSet) -> Scoring:
        """Everything that changes the scores of an evaluation set."""
        task = eval_set.task_by_protocol
        tokenizer = choose_caption_tokenizer() if task.metric in CAPTION_NAMES else ""
        return task.scoring(self._selection(eval_set), tokenizer)

    def _selection(self, eval_set: EvalSet) -> Selection:
        """The questions of an evaluation set that are asked; `ids` name test questions of any task."""
        if eval_set.split != "test":
            return Selection(self.config.limit)
        ids = self.ids_in(eval_set)
        return Selection(ids=ids) if ids else self.config.only

    def ids_in(self, eval_set: EvalSet) -> tuple[str, ...]:
        """The configured `ids` that are in an evaluation set; none while its questions are not prepared."""
        wanted = self.config.only.ids
        if not wanted or not self.questions(eval_set).exists():
            return ()
        return tuple(name for name in wanted if name in _read_ids(self.questions(eval_set)))


@cache
def _read_ids(questions: Path) -> frozenset[str]:
    """The ids in a question file, which never changes once it is there."""
    return frozenset(example.question_id for example in read_examples(questions))


def list_unfinished(addresses: Iterable[Address | None]) -> list[Address]:
    """The addresses whose results are not complete, each once, in their order."""
    unique = {address.path: address for address in addresses if address is not None}
    return [address for address in unique.values() if not address.is_complete()]


def require_complete(
    addresses: Iterable[Address | None], what: str, make_command: Callable[[], str], hint: str = ""
) -> None:
    """Raises UserError if results are missing, naming them and the command that makes them.

    make_command: called only if something is missing, as it takes half a second; hint: text after the command.
    """
    missing = list_unfinished(addresses)
    if missing:
        names = "\n".join(f"  {address.short}" for address in missing)
        raise UserError(f"{len(missing)} {what} missing:\n{names}\nMake them with: {make_command()}{hint}")


def choose_caption_tokenizer() -> str:
    """`ptb`, the tokenizer of published caption scores, where there is Java to run it; otherwise `builtin`."""
    return "ptb" if has_java() else "builtin"


def _kind(kind: str, split: str) -> str:
    """The folder of answers or scores; those on val lie apart, so that nobody takes them for test results."""
    return kind if split == "test" else f"{kind}/{split}"
