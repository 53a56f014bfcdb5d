"""What a child process can do: one function a stage, each reading its item of the job file.

The heavy libraries are imported inside, so that a process loads only what its stage needs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from robustmerge.runs import Address
from robustmerge.settings import build


def say(line: str) -> None:
    """Tell the user something through the process that started the line."""
    print(f"say: {line}", flush=True)


def work_prepare(item: dict) -> None:
    from data_prep.prepare import prepare
    from data_prep.settings import TaskData

    prepare(Address.from_json(item["address"]), build(TaskData, item["settings"], "data"), say)


def work_corpus(item: dict) -> None:
    from data_prep.prepare import prepare_corpus
    from data_prep.settings import BaseCorpus

    prepare_corpus(Address.from_json(item["address"]), build(BaseCorpus, item["settings"], "corpus"), say)


def work_base(item: dict) -> None:
    from llava_ext.base import train_base
    from llava_ext.settings import BaseModel

    settings = build(BaseModel, item["settings"], "model.base")
    train_base(Address.from_json(item["address"]), settings, Path(item["corpus"]), say)


def work_train(item: dict) -> None:
    from llava_ext.settings import Expert
    from llava_ext.train import train_expert

    data = {task: Path(folder) for task, folder in item["data"].items()}
    settings = build(Expert, item["settings"], "expert")
    train_expert(Address.from_json(item["address"]), settings, Path(item["base"]), data, say)


def work_merge(item: dict) -> None:
    from robustmerge.merging import merge
    from robustmerge.method import build_method

    experts = {name: Path(folder) for name, folder in item["experts"].items()}
    merge(Address.from_json(item["address"]), build_method(item["settings"]), experts, say, item["workers"], True)


def work_predict(item: dict) -> None:
    from eval.predict import predict
    from eval.settings import Generation

    settings = build(Generation, item["settings"], "generation")
    generate = _load_base(item["base"], settings.template, settings.products == "fast")
    generate.use(Path(item["adapter"]) if item["adapter"] else None)
    predict(Address.from_json(item["address"]), settings, Path(item["questions"]), generate, say)


@lru_cache(maxsize=1)
def _load_base(base: str, template: str, fast: bool) -> Any:
    """The base model, loaded once for all sources of this process."""
    from llava_ext.generate import Generator

    return Generator(Path(base), template, fast=fast)


WORK = {
    "prepare": work_prepare,
    "corpus": work_corpus,
    "base": work_base,
    "train": work_train,
    "merge": work_merge,
    "predict": work_predict,
}
