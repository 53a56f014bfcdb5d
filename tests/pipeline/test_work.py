"""What a child process makes of its items, where the machine is to blame. Needs nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from eval.settings import Generation
from pipeline.stages import predict
from robustmerge.stage.address import Address
from robustmerge.stage.records import Example, write_examples
from robustmerge.stage.settings import UserError


class Full:
    """A model on a GPU without room for a batch."""

    def use(self, source: Path | None) -> None:
        pass

    def prefetch(self, examples: list[Example], image_root: Path, image: str) -> None:
        pass

    def __call__(self, *_: object, **more: object) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_batch_too_large_for_the_gpu_is_told_with_the_key_that_makes_it_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_base", lambda *_: Full())
    write_examples(tmp_path / "test.jsonl", [Example("q", "Why?", "so")])
    settings = dataclasses.asdict(Generation("task", "{text}", "vicuna_v1", 8, 32))
    address = Address(tmp_path, tmp_path / "found.jsonl", {"stage": "predict"}).to_json()
    item = {"settings": settings, "address": address, "base": "", "family": "llava", "device": "cuda", "adapter": None}
    with pytest.raises(UserError, match=r"for batches of 32: take a smaller one, as model\.generation_batch=16"):
        predict.work_predict({**item, "questions": str(tmp_path / "test.jsonl")})
