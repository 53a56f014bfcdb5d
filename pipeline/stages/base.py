"""Base: the model that every expert is trained on, trained here or a named checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.jobs import Job, run_jobs, say
from pipeline.plan import Plan
from pipeline.stages.convert import fetch
from pipeline.todo import item_of, logs_of, once
from robustmerge.stage.address import Address
from robustmerge.stage.settings import build

MODEL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors")


def fetch_bases(plans: Sequence[Plan]) -> None:
    """Fetch the bases that are checkpoints of the Hub."""
    for address in {plan.base.path: plan.base for plan in plans if plan.config.model.base is None}.values():
        fetch(address, MODEL_FILES)


def build_base(plans: Sequence[Plan]) -> None:
    """Train the small base where there is one to train; a named checkpoint is fetched, or taken as it is."""
    fetch_bases(plans)
    trained = [plan for plan in plans if plan.config.model.base is not None]
    needed = [plan for plan in trained if not plan.base.is_complete()]
    corpora = once(
        needed, lambda plan: [(plan.corpus, dataclasses.replace(plan.config.benchmark.corpus, jobs=plan.config.jobs))]
    )
    items = [item_of("corpus", address, settings) for address, settings in corpora]
    run_jobs("corpus", [Job("data/base", items)] if items else [], 1, logs_of(plans))
    todo = once(needed, lambda plan: [(plan.base, plan)])
    jobs = [
        Job(address.short, [item_of("base", address, plan.config.model.base, corpus=str(plan.corpus.path))])
        for address, plan in todo
    ]
    run_jobs("base model", jobs, 1, logs_of(plans))


def work_corpus(item: dict) -> None:
    from data_prep.prepare import prepare_corpus
    from data_prep.settings import BaseCorpus

    prepare_corpus(Address.from_json(item["address"]), build(BaseCorpus, item["settings"], "corpus"), say)


def work_base(item: dict) -> None:
    from llava_ext.settings import BaseModel
    from llava_ext.small.train_base import train_base

    settings = build(BaseModel, item["settings"], "model.base")
    train_base(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)
