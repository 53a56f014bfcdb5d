"""The base stage: the model that every expert is trained on, a named checkpoint or a small one that is trained here.

A small one is trained in two stages: `pretrain` makes one that sees and talks, and from it `base` makes those that
differ in what they know of the tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.addresses import require_complete
from pipeline.events import say
from pipeline.jobs import Job, run_jobs
from pipeline.plan import Plan
from pipeline.program import train_all_command
from pipeline.stages.convert import fetch
from pipeline.work_items import describe_item, drop_finished, run_in_turn
from robustmerge.stage.address import Address
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.settings import build

MODEL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors")


def make_bases(plans: Sequence[Plan]) -> None:
    """Make the base of every plan: use a checkpoint on disk as it is, fetch one of the Hub, train a small one."""
    fetch_bases(plans)
    wanted = [(plan, plan.config.model.trained_base) for plan in plans]
    trained = [(plan, base) for plan, base in wanted if base is not None and not plan.base.is_complete()]
    corpora = drop_finished(
        (plan.corpus, dataclasses.replace(plan.config.benchmark.corpus, jobs=plan.config.jobs)) for plan, _ in trained
    )
    items = [describe_item("corpus", address, settings) for address, settings in corpora]
    run_in_turn(plans[0], "corpus", "data/base", items)
    pretrained = drop_finished((plan.pretrained, (plan, base.pretraining)) for plan, base in trained)
    items = [
        describe_item("pretrain", address, settings, corpus=str(plan.corpus.path))
        for address, (plan, settings) in pretrained
    ]
    _run_side_by_side(plans[0], "pretrain", items)
    bases = drop_finished((plan.base, (plan, base)) for plan, base in trained)
    items = [
        describe_item("base", address, base, pretrained=str(plan.pretrained.path), corpus=str(plan.corpus.path))
        for address, (plan, base) in bases
    ]
    _run_side_by_side(plans[0], "base", items)


def _run_side_by_side(plan: Plan, title: str, items: Sequence[dict]) -> None:
    run_jobs(title, [Job(item["name"], [item]) for item in items], plan.config.jobs, plan.logs)


def fetch_bases(plans: Sequence[Plan]) -> None:
    """Fetch the bases that are checkpoints of the Hub."""
    for address in {plan.base.path: plan.base for plan in plans if plan.config.model.trained_base is None}.values():
        fetch(address, MODEL_FILES)


def require_bases(plans: Sequence[Plan]) -> None:
    """Fetch what is on the Hub. Raises UserError for a base that is to be trained here and is not."""
    fetch_bases(plans)
    trained = [plan.base for plan in plans if plan.config.model.trained_base is not None]
    require_complete(trained, "base model is", train_all_command)


def work_corpus(item: dict) -> None:
    from data_prep.prepare import prepare_corpus
    from data_prep.settings import BaseCorpus

    prepare_corpus(Address.from_json(item["address"]), build(BaseCorpus, item["settings"], "corpus"), say)


def work_pretrain(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import Pretraining
        from llava_ext.small.pretrain import pretrain

    settings = build(Pretraining, item["settings"], "model.base.pretraining")
    pretrain(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)


def work_base(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import BaseModel
        from llava_ext.small.train_base import train_base

    settings = build(BaseModel, item["settings"], "model.base")
    train_base(Address.from_json(item["address"]), settings, Path(item["pretrained"]), Path(item["corpus"]), say)
