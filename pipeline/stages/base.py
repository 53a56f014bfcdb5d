"""The base stage: the model that every expert is trained on, either trained here or a named checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.events import say
from pipeline.jobs import Job, run_jobs
from pipeline.plan import Plan
from pipeline.stages.convert import fetch
from pipeline.work_items import describe_item, drop_finished, run_in_turn
from robustmerge.stage.address import Address
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.settings import build

MODEL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors")


def make_bases(plans: Sequence[Plan]) -> None:
    """Make the base of every plan: train a small one, fetch a checkpoint of the Hub, use a local one as it is."""
    fetch_bases(plans)
    trained = [plan for plan in plans if plan.config.model.base is not None and not plan.base.is_complete()]
    corpora = drop_finished(
        (plan.corpus, dataclasses.replace(plan.config.benchmark.corpus, jobs=plan.config.jobs)) for plan in trained
    )
    items = [describe_item("corpus", address, settings) for address, settings in corpora]
    run_in_turn(plans[0], "corpus", "data/base", items)
    jobs = [
        Job(address.short, [describe_item("base", address, plan.config.model.base, corpus=str(plan.corpus.path))])
        for address, plan in drop_finished((plan.base, plan) for plan in trained)
    ]
    run_jobs("base model", jobs, 1, plans[0].logs)


def fetch_bases(plans: Sequence[Plan]) -> None:
    """Fetch the bases that are checkpoints of the Hub."""
    for address in {plan.base.path: plan.base for plan in plans if plan.config.model.base is None}.values():
        fetch(address, MODEL_FILES)


def work_corpus(item: dict) -> None:
    from data_prep.prepare import prepare_corpus
    from data_prep.settings import BaseCorpus

    prepare_corpus(Address.from_json(item["address"]), build(BaseCorpus, item["settings"], "corpus"), say)


def work_base(item: dict) -> None:
    with loading_libraries():
        from llava_ext.settings import BaseModel
        from llava_ext.small.train_base import train_base

    settings = build(BaseModel, item["settings"], "model.base")
    train_base(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)
