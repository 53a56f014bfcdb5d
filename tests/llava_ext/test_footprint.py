"""What training takes by arithmetic, against models that are built and tensors that autograd keeps; laws of memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_ext.adapters import add_adapter
from llava_ext.conversation import IGNORE
from llava_ext.footprint import (
    KNOWN,
    count_layer_bytes,
    count_operations,
    find_config,
    list_memory,
    measure,
    sum_memory,
)
from llava_ext.model import open_config
from llava_ext.settings import DEEPSPEED_ENGINES, Expert, Peft, Trainer
from llava_ext.train import keep_answers, load_with_adapter
from tests.tiny_model import write_base

BIG = Peft(r=16, alpha=32)


@pytest.fixture(scope="module")
def seven():
    return measure(find_config("llava-hf/llava-1.5-7b-hf"), BIG)


def test_llava_15_trains_what_its_published_recipe_trains(seven):
    assert (seven.lora, seven.whole) == (
        32 * (4 * 2 * 4096 + 3 * (4096 + 11008)) * 16,
        1024 * 4096 + 4096**2 + 2 * 4096,
    )
    assert (round(seven.lora / 1e6, 1), round(seven.whole / 1e6, 1)) == (40.0, 21.0)
    assert round(seven.base / 1e9, 2) == 7.06 and seven.picture == 576
    larger = measure(find_config("llava-hf/llava-1.5-13b-hf@main"), BIG)
    assert round(larger.base / 1e9, 1) == 13.4 and len(KNOWN) == 2


@pytest.mark.parametrize("peft", [Peft(r=4), Peft(r=2, use_dora=True), Peft(r=4, modules_to_save=())])
def test_the_parameters_are_those_of_the_model_that_training_builds(tmp_path, peft):
    base = write_base(tmp_path / "base")
    sizes = measure(open_config(base), peft)
    model = load_with_adapter(Expert(("task",), peft=peft), base)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert (sizes.trained, sizes.base) == (
        trained,
        LlavaForConditionalGeneration.from_pretrained(base).num_parameters(),
    )


def describe(engine: str, processes: int, **others) -> Trainer:
    deepspeed = {"stage": 3} if engine in DEEPSPEED_ENGINES else {}
    return Trainer(engine, "cuda", processes, "bf16", 16, True, deepspeed=deepspeed, **others)


@pytest.mark.parametrize("processes", [2, 4, 8, 64])
def test_a_device_holds_less_with_every_further_engine(seven, processes):
    engines = ("ddp", "zero2", "zero3", "zero3_offload")
    sums = [sum_memory(list_memory(seven, BIG, describe(engine, processes), 16, 700)) for engine in engines]
    assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("engine", DEEPSPEED_ENGINES)
def test_more_devices_hold_no_more_each_and_machines_count_as_devices(seven, engine):
    sums = [sum_memory(list_memory(seven, BIG, describe(engine, number), 16, 700)) for number in (1, 2, 4, 8, 16)]
    assert sums == sorted(sums, reverse=True)
    several = list_memory(seven, BIG, describe(engine, 8, nodes=2), 16, 700)
    assert sum_memory(several) == sums[-1]
    assert (several["host"] > 0) == ("offload" in engine)


def test_checkpointing_saves_memory_and_eager_attention_costs_it(seven):
    chosen = describe("zero2", 8)
    others = {"gradient_checkpointing": False}, {"gradient_checkpointing": False, "attention": "eager"}
    sums = [
        sum_memory(list_memory(seven, BIG, dataclasses.replace(chosen, **other), 16, 700)) for other in ({}, *others)
    ]
    assert sums == sorted(set(sums))


def test_a_packed_language_model_takes_the_fewer_bytes_the_fewer_bits_it_has(seven):
    chosen = describe("ddp", 1)
    base = [list_memory(seven, BIG, chosen, 16, 700, quantize)["base"] for quantize in (None, "8bit", "4bit")]
    assert base == sorted(set(base), reverse=True) and base[0] / base[2] > 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.05, 0.0])
def test_a_layer_keeps_what_autograd_keeps_of_it(attention, dropout):
    """Counted as the difference of two depths; on a CPU a dropout mask has the precision of its input, 2 bytes."""
    rows, length = 2, 150
    kept = []
    for layers in (1, 2):
        text = LlamaConfig(
            vocab_size=500, hidden_size=128, intermediate_size=344, num_hidden_layers=layers, num_attention_heads=4
        )
        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28
        )
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=499)
        peft = Peft(r=4, dropout=dropout)
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).bfloat16()
        adapted = add_adapter(model, peft, "base", 0, "task", float32=False).train()
        kept.append(count_kept(adapted, rows, length) / (rows * length))
    counted = count_layer_bytes(measure(config, peft), peft, attention, length, mask=2)
    assert kept[1] - kept[0] == pytest.approx(counted, rel=0.02)


def count_kept(model: torch.nn.Module, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids, labels = torch.full((rows, length), 7), torch.full((rows, length), IGNORE)
    labels[:, -2:] = 8
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        mask = torch.ones_like(ids)
        output = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, **keep_answers(labels))
    assert output.loss.requires_grad
    return sum(kept.values())


def test_the_operations_of_a_token_are_about_four_for_each_number_of_the_language_model(seven):
    each = count_operations(seven, 10**6, 0, 1.0, 0) / 10**6
    assert each == pytest.approx(4 * seven.used + 6 * seven.lora, rel=1e-3)
    assert count_operations(seven, 10**6, 1500, 700.0, 10**5) > each * 10**6
