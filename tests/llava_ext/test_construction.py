"""In which order a training is built, where the base's weights are read to, and the kernel of attention."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from llava_ext import train
from llava_ext.adapters import hash_a
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, find_place_of_weights, load_with_adapter, train_expert
from llava_ext.trainer import Journal
from robustmerge.stage.address import Address
from robustmerge.stage.settings import ConfigError
from tests.tiny_model import TEMPLATE, read_losses, write_base, write_task

RECIPE = Recipe(learning_rate=1e-2, global_batch=4, max_steps=2, save_steps=0)
SETTINGS = Expert(("task",), peft=Peft(r=4), recipe=RECIPE, template=TEMPLATE)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ground")
    write_base(root / "base")
    write_task(root / "task")
    return root


def run(ground: Path, folder: Path, settings: Expert = SETTINGS) -> Path:
    address = Address(folder.parent, folder, {"stage": "train", "name": folder.name})
    return train_expert(address, settings, ground / "base", {"task": ground / "task"}, LLAVA_TRAINING, lambda _: None)


def test_the_arguments_come_before_the_base_and_the_hash_of_a_before_the_first_step(ground, tmp_path, monkeypatch):
    """ZeRO-3 spreads a base that is loaded after the arguments are built, and A from the first step on."""
    events: list[str] = []

    def note(owner: object, name: str, event: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (events.append(event), original(*a, **k))[1])

    note(train, "_build_arguments", "arguments")
    note(train, "load_model", "base")
    note(train, "hash_a", "hash of A")
    note(Journal, "on_train_begin", "first step")
    folder = run(ground, tmp_path / "expert")
    assert events == ["arguments", "base", "hash of A", "first step"]
    untrained = hash_a(load_with_adapter(SETTINGS, ground / "base"))
    assert json.loads((folder / "training.json").read_text())["first_a_sha256"] == untrained


def test_what_was_drawn_before_changes_neither_a_nor_the_training(ground, tmp_path):
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        folders.append(run(ground, tmp_path / str(seed)))
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == other


def test_a_base_that_is_read_into_its_place_trains_to_the_same_bytes(ground, tmp_path, monkeypatch):
    usual = run(ground, tmp_path / "usual")
    monkeypatch.setattr(train, "find_place_of_weights", lambda trainer: "cpu")
    placed = run(ground, tmp_path / "placed")
    assert read_losses(usual) == read_losses(placed)
    name = "adapter_model.safetensors"
    assert (usual / name).read_bytes() == (placed / name).read_bytes()


def test_each_process_reads_the_base_into_its_gpu_but_for_zero_3(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    places = {engine: find_place_of_weights(describe(engine)) for engine in ("ddp", "zero2", "zero3", "zero3_offload")}
    assert places == {"ddp": "cuda:3", "zero2": "cuda:3", "zero3": None, "zero3_offload": None}
    assert find_place_of_weights(Trainer()) is None


def describe(engine: str, **others) -> Trainer:
    return Trainer(engine, "cuda", 4, "bf16", deepspeed={"stage": 2} if "zero" in engine else {}, **others)


@pytest.mark.parametrize(("attention", "kernel"), [(None, "eager"), ("sdpa", "sdpa")])
def test_the_kernel_of_attention_is_the_chosen_one(ground, attention, kernel):
    settings = dataclasses.replace(SETTINGS, trainer=Trainer(attention=attention))
    assert load_with_adapter(settings, ground / "base").config._attn_implementation == kernel


def test_a_kernel_that_cannot_be_used_is_refused():
    assert describe("ddp", attention="flash_attention_2").attention == "flash_attention_2"
    with pytest.raises(ConfigError, match="unknown kernel 'flash'; null, or choose one of eager, flash_attention_2"):
        describe("ddp", attention="flash")
    with pytest.raises(ConfigError, match="for GPUs in fp16 or bf16, got cpu in fp32"):
        Trainer(attention="flash_attention_2")
