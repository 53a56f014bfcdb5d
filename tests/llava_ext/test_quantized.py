"""QLoRA: what is quantised, what is refused, and, where bitsandbytes is installed, experts that are trained so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llava_ext import quantized
from llava_ext.adapters import LLAVA, load_adapter
from llava_ext.model import load_model
from llava_ext.quantized import quantizing_options
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, load_with_adapter, train_expert
from pipeline.config import read_config
from pipeline.program import compose
from pipeline.stages.train import check_training
from robustmerge.stage.address import Address
from robustmerge.stage.settings import ConfigError, UserError
from tests.interleave_layout import write_checkpoint
from tests.plans import make_plan
from tests.tiny_model import write_task

SETTINGS = Expert(
    tasks=("one",),
    template="qwen_1_5",
    peft=Peft(r=4),
    recipe=Recipe(learning_rate=1e-2, projector_learning_rate=1e-2, global_batch=4, max_steps=4, save_steps=2),
    trainer=Trainer(gradient_checkpointing=True),
)


def test_four_bits_are_those_of_qlora_and_tower_projector_and_head_are_kept(monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    monkeypatch.setenv("LOCAL_RANK", "3")
    options = quantizing_options("4bit", torch.bfloat16, "cuda")
    config = options["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and options["device_map"] == {"": 3}
    assert quantizing_options("8bit", torch.float32, "cpu")["quantization_config"].load_in_8bit
    assert set(config.llm_int8_skip_modules) == {"model.vision_tower", "model.multi_modal_projector", "lm_head"}


def test_without_bitsandbytes_training_is_refused_before_it_begins_and_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    check_training([make_plan(tmp_path, "tasks=[vqav2]")])
    with pytest.raises(UserError, match=r"model.quantize=4bit needs bitsandbytes.*pip install bitsandbytes"):
        check_training([make_plan(tmp_path, "tasks=[vqav2]", "+model.quantize=4bit")])


def test_what_cannot_be_quantised_is_refused():
    zero3 = compose("train_all", ["model=llava15_7b", "trainer=zero3", "model.quantize=8bit"])
    with pytest.raises(ConfigError, match=r"ZeRO-3 spreads every weight.*take trainer=single_gpu, ddp or zero2"):
        read_config(zero3)
    with pytest.raises(ConfigError, match=r"unknown quantisation '3bit'; choose one of 4bit, 8bit.*, or null"):
        read_config(compose("train_all", ["model=llava15_7b", "model.quantize=3bit"]))
    clip = compose("train_all", ["benchmark=clip8_mini", "model=clip_tiny", "+model.quantize=4bit"])
    with pytest.raises(ConfigError, match="only the language model of a LLaVA is quantised"):
        read_config(clip)


def test_only_experts_that_are_trained_quantised_have_other_addresses(tmp_path):
    words = ("+model.quantize=4bit", "tasks=[vqav2,rec]")
    plain, packed = (make_plan(tmp_path, *words[first:]) for first in (1, 0))
    for task in plain.config.seen:
        assert plain.expert(task).identity["settings"].keys() < packed.expert(task).identity["settings"].keys()
        assert plain.expert(task).path != packed.expert(task).path
        assert plain.data(task) == packed.data(task)
    assert plain.base == packed.base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("quantised") / "base")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_an_expert_is_trained_on_a_quantised_language_model_and_read_by_the_whole_one(base, tmp_path, quantize):
    pytest.importorskip("bitsandbytes")
    settings = dataclasses.replace(SETTINGS, quantize=quantize)
    modules = load_with_adapter(settings, base).named_modules()
    linears = {name: module for name, module in modules if isinstance(module, nn.Linear)}
    packed = {name for name, module in linears.items() if not module.weight.dtype.is_floating_point}
    assert packed == {name for name in linears if name.endswith("_proj.base_layer")} and len(packed) == 2 * 7
    data = {"one": write_task(tmp_path / "one")}
    address = Address(tmp_path, tmp_path / "expert", {"stage": "train", "name": "one"})
    folder = train_expert(address, settings, base, data, LLAVA_TRAINING, lambda _: None)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    losses = [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]
    load_adapter(load_model(base, torch.float32), folder, LLAVA)
