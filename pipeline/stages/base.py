"""The base stage: the model that every expert is trained on, a named checkpoint or a small one that is trained here.

A small LLaVA is trained in two stages: `pretrain` makes one that sees and talks, and from it `base` makes those that
differ in what they know of the tasks. A small CLIP is trained in one. The base of a pretrained language model is put
together by `join`, with an alignment that is shipped or that `align` trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llava_ext.settings import ALIGNMENT_FILES, BaseModel
from pipeline.addresses import BasePart, require_complete
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
    """Make the base of every plan: use a checkpoint on disk as it is, fetch one from the Hub, train a small one.

    A base with a pretrained language model is put together, after its alignment is trained if none is shipped.
    """
    fetch_bases(plans)
    parts = [plan.base_parts for plan in plans if not plan.base.is_complete()]
    for alike in itertools.zip_longest(*parts):  # the first parts of all bases, then the second ones
        wanted = drop_finished((part.address, part) for part in alike if part is not None)
        items = [_describe(part) for _, part in wanted]
        if not items:
            continue
        cores = plans[0].config.jobs
        threads = {"align": max(1, cores // len(items))}  # a large model; all others have one each
        launches = [partial(launch_plain, threads=threads.get(item["stage"], 1)) for item in items]
        jobs = [Job(item["name"], [item], launch=launch) for item, launch in zip(items, launches, strict=True)]
        run_jobs(items[0]["stage"], jobs, cores, plans[0].logs)


def _describe(part: BasePart) -> dict:
    inputs = {name: str(address.path) for name, address in part.inputs.items()}
    return describe_item(part.stage, part.address, part.settings, **inputs)


def fetch_bases(plans: Sequence[Plan]) -> None:
    """Fetch the bases that are checkpoints on the Hub, and the parts of other bases that are there."""
    for plan in plans:
        fetch(plan.base, MODEL_FILES)
        if not plan.base.is_complete():
            for address in (address for part in plan.base_parts for address in part.inputs.values()):
                fetch(address, (*MODEL_FILES, *ALIGNMENT_FILES))


def require_bases(plans: Sequence[Plan]) -> None:
    """Fetch what is on the Hub. Raises UserError if a base that is to be made here has not been made."""
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
