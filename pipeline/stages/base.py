"""The base stage: the model that every expert is trained on, a named checkpoint or a small one that is trained here.

A small LLaVA is trained in two stages: `pretrain` makes one that sees and talks, and from it `base` makes those that
differ in what they know of the tasks. A small CLIP is trained in one. The base of a pretrained language model is put
together by `join`, with an alignment that is shipped or that `align` trains.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llava_ext.settings import AlignedBase, BaseModel
from pipeline.addresses import require_complete
from pipeline.events import say
from pipeline.jobs import Job, launch_plain, run_jobs
from pipeline.plan import Plan
from pipeline.program import train_all_command
from pipeline.stages.convert import fetch
from pipeline.work_items import describe_item, drop_finished
from robustmerge.stage.address import Address
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.settings import build

MODEL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors")


def make_bases(plans: Sequence[Plan]) -> None:
    """Make the base of every plan: use a checkpoint on disk as it is, fetch one of the Hub, train a small one."""
    fetch_bases(plans)
    is_trained = [plan.config.model.trained_base is not None and not plan.base.is_complete() for plan in plans]
    parts = [_list_parts(plan) for plan in itertools.compress(plans, is_trained)]
    for alike in itertools.zip_longest(*parts):  # the first parts of all bases, then the second ones
        wanted = drop_finished((part.address, part) for part in alike if part is not None)
        items = [describe_item(part.stage, address, part.settings, **part.inputs) for address, part in wanted]
        if not items:
            continue
        cores = plans[0].config.jobs
        threads = {"align": max(1, cores // len(items))}  # a large model; all others have one each
        launches = [partial(launch_plain, threads=threads.get(item["stage"], 1)) for item in items]
        jobs = [Job(item["name"], [item], launch=launch) for item, launch in zip(items, launches, strict=True)]
        run_jobs(items[0]["stage"], jobs, cores, plans[0].logs)


class Part(NamedTuple):
    """One step to a base that is trained here. inputs: folders by name."""

    address: Address
    settings: Any
    inputs: dict[str, str]

    @property
    def stage(self) -> str:
        return self.address.identity["stage"]


def _list_parts(plan: Plan) -> list[Part]:
    """The steps to the plan's base: its corpus, for a LLaVA what bases share that know more or less, and itself."""
    base, corpus = plan.config.model.trained_base, plan.config.benchmark.corpus
    if isinstance(base, AlignedBase) and not base.train:
        return [_join(plan)]
    parts = [Part(plan.corpus, dataclasses.replace(corpus, jobs=plan.config.jobs), {})]
    inputs = {"corpus": str(plan.corpus.path)}
    if isinstance(base, AlignedBase):
        inputs |= {"language": str(plan.language.path), "tower": str(plan.tower.path)}
        return [*parts, Part(plan.alignment, base, inputs), _join(plan)]
    if isinstance(base, BaseModel):
        parts.append(Part(plan.pretrained, base.pretraining, inputs))
        inputs = {**inputs, "pretrained": str(plan.pretrained.path)}
    return [*parts, Part(plan.base, base, inputs)]


def _join(plan: Plan) -> Part:
    """The last step to a base of a pretrained language model."""
    return Part(plan.base, {}, {"language": str(plan.language.path), "alignment": str(plan.alignment.path)})


def fetch_bases(plans: Sequence[Plan]) -> None:
    """Fetch the bases that are checkpoints of the Hub, and the language models of those that are put together."""
    for plan in plans:
        base = plan.config.model.trained_base
        if base is None:
            fetch(plan.base, MODEL_FILES)
        elif isinstance(base, AlignedBase) and not plan.base.is_complete():
            fetch(plan.language, MODEL_FILES)


def require_bases(plans: Sequence[Plan]) -> None:
    """Fetch what is on the Hub. Raises UserError for a base that is to be trained here and is not."""
    fetch_bases(plans)
    trained = [plan.base for plan in plans if plan.config.model.trained_base is not None]
    require_complete(trained, "base model is", train_all_command)


def work_corpus(item: dict) -> None:
    from data_prep.prepare import prepare_corpus
    from data_prep.settings import BaseCorpus, CaptionCorpus

    kinds: dict[str, type[BaseCorpus | CaptionCorpus]] = {"corpus": BaseCorpus, "captions": CaptionCorpus}
    prepare_corpus(Address.from_json(item["address"]), build(kinds[item["stage"]], item["settings"], "corpus"), say)


def work_pretrain(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import Pretraining
        from llava_ext.small.pretrain import pretrain

    settings = build(Pretraining, item["settings"], "model.base.pretraining")
    pretrain(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)


def work_base(item: dict) -> None:
    with loading_libraries():
        from llava_ext.small.train_base import train_base

    settings = build(BaseModel, item["settings"], "model.base")
    train_base(Address.from_json(item["address"]), settings, Path(item["pretrained"]), Path(item["corpus"]), say)


def work_align(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import AlignedBase
        from llava_ext.small.align import align

    settings = build(AlignedBase, item["settings"], "model.base")
    language, tower, corpus = (Path(item[name]) for name in ("language", "tower", "corpus"))
    align(Address.from_json(item["address"]), settings, language, tower, corpus, say)


def work_join(item: dict) -> None:
    with loading_libraries():
        from llava_ext.small.join import join_base

    join_base(Address.from_json(item["address"]), Path(item["language"]), Path(item["alignment"]), say)


def work_clip_base(item: dict) -> None:
    with loading_libraries():
        from clip_ext.base import train_clip
        from clip_ext.settings import ClipBase

    settings = build(ClipBase, item["settings"], "model.base")
    train_clip(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)
