"""What a child process can do: one function a stage, each reading its item of the job file.

The heavy libraries are imported inside, so that a process loads only what its stage needs.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from robustmerge.runs import Address, run_stage
from robustmerge.settings import UserError, build


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


def work_convert(item: dict) -> None:
    from llava_ext.conversion import convert_to_peft

    original, base = Path(item["original"]), item["base"]
    run_stage(Address.from_json(item["address"]), lambda folder: convert_to_peft(original, folder, base), say)


def work_merge(item: dict) -> None:
    from robustmerge.merging import merge
    from robustmerge.method import build_method

    experts = {name: Path(folder) for name, folder in item["experts"].items()}
    merge(Address.from_json(item["address"]), build_method(item["settings"]), experts, say, item["workers"], True)


def work_predict(item: dict) -> None:
    from torch import OutOfMemoryError

    from eval.predict import predict
    from eval.settings import Generation
    from llava_ext.processes import run_stage_together

    settings = build(Generation, item["settings"], "generation")
    fast = settings.products == "fast"
    generate = load_base(item["base"], settings.template, fast, item["device"], settings.precision)
    generate.use(Path(item["adapter"]) if item["adapter"] else None)
    answer = partial(generate, image=settings.image)
    address, questions = Address.from_json(item["address"]), Path(item["questions"])
    ahead = partial(generate.ahead, image=settings.image)
    try:
        predict(address, settings, questions, answer, say, together=run_stage_together, ahead=ahead)
    except OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for batches of {settings.batch_size}: take a smaller one, as "
            f"model.generation_batch={max(1, settings.batch_size // 2)} (answers begin anew: a batch's size is part of "
            f"what they are)"
        ) from error


@lru_cache(maxsize=1)
def load_base(base: str, template: str, fast: bool, device: str, precision: str) -> Any:
    """The base model, loaded once for all sources of this process, on the GPU of its rank."""
    import torch

    from llava_ext.backend import DTYPES
    from llava_ext.generate import Generator

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    return Generator(Path(base), template, device, DTYPES[precision], fast)


def work_score(item: dict) -> None:
    from eval.score import score
    from eval.settings import Scoring

    settings = build(Scoring, item["settings"], "scoring")
    score(Address.from_json(item["address"]), settings, Path(item["questions"]), Path(item["predictions"]), say)


WORK = {
    "prepare": work_prepare,
    "corpus": work_corpus,
    "base": work_base,
    "train": work_train,
    "convert": work_convert,
    "merge": work_merge,
    "predict": work_predict,
    "score": work_score,
}
