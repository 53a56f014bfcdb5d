"""Answers by batched generation: batches, sources, adapters. Run: pytest tests/test_generation.py"""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

from llava_ext.generate import Generator
from llava_ext.settings import Expert, Peft, Recipe
from llava_ext.train import train_expert
from robustmerge.records import Example
from robustmerge.runs import Address, UserError
from tests.tiny_model import TEMPLATE, draw_examples, write_base, write_task


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, two experts of other seeds, and questions with and without pictures, of several lengths."""
    root = tmp_path_factory.mktemp("ground")
    base, task = write_base(root / "base"), write_task(root / "task")
    recipe = Recipe(learning_rate=2e-2, projector_learning_rate=2e-2, global_batch=8, max_steps=12, save_steps=0)
    experts = []
    for seed in (0, 1):
        settings = Expert(tasks=("task",), recipe=recipe, template=TEMPLATE, peft=Peft(r=4, dropout=0.0), seed=seed)
        address = Address(root, root / f"expert{seed}", {"stage": "train", "seed": seed})
        experts.append(train_expert(address, settings, base, {"task": task}, lambda _: None))
    return base, experts, task, draw_examples(root / "task", 14, seed=7)


def test_a_batch_gives_the_answers_of_its_questions_one_by_one(ground):
    base, experts, task, examples = ground
    assert {example.image is None for example in examples} == {True, False}
    generate = Generator(base, TEMPLATE)
    for source in (None, experts[0]):
        generate.use(source)
        together = generate(examples, task, 8)
        assert together == [generate([example], task, 8)[0] for example in examples]
        assert together == generate(examples[::-1], task, 8)[::-1]


def test_the_order_of_sources_does_not_change_answers_or_weights(ground):
    base, experts, task, examples = ground
    generate = Generator(base, TEMPLATE)
    clean = {name: weight.clone() for name, weight in generate.model.state_dict().items()}
    alone = {}
    for source in (None, *experts):
        fresh = Generator(base, TEMPLATE)
        fresh.use(source)
        alone[source] = fresh(examples, task, 8)
    assert alone[experts[0]] != alone[None]
    for source in (experts[1], None, experts[0], experts[1], experts[0], None):
        generate.use(source)
        assert generate(examples, task, 8) == alone[source]
    assert generate.model.state_dict().keys() == clean.keys()
    assert all(torch.equal(weight, clean[name]) for name, weight in generate.model.state_dict().items())


def test_merged_weights_answer_as_the_adapter_does(ground):
    base, experts, task, _ = ground
    from llava_ext.adapters import load_adapter

    generate = Generator(base, TEMPLATE)
    ids = torch.arange(10, 40).reshape(2, 15)
    generate.use(experts[0])
    merged = generate.model(input_ids=ids).logits
    plain = load_adapter(Generator(base, TEMPLATE).model, experts[0]).eval()
    assert torch.allclose(merged, plain(input_ids=ids).logits, atol=1e-4)


def test_questions_of_text_alone_are_answered(ground):
    base, _, task, _ = ground
    answers = Generator(base, TEMPLATE)([Example("a", "Colour?", ""), Example("b", "Name it please", "")], task, 4)
    assert len(answers) == 2
    assert Generator(base, TEMPLATE)([], task, 4) == []


def test_an_adapter_with_a_missing_key_is_refused_and_the_base_stays_whole(ground, tmp_path):
    from safetensors.torch import load_file, save_file

    base, experts, task, examples = ground
    broken = tmp_path / "broken"
    shutil.copytree(experts[0], broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, broken / "adapter_model.safetensors")
    generate = Generator(base, TEMPLATE)
    before = generate(examples, task, 4)
    with pytest.raises(UserError, match="does not fit this model: missing"):
        generate.use(broken)
    assert generate(examples, task, 4) == before
    with pytest.raises(UserError, match="no adapter folder"):
        generate.use(tmp_path)
    assert generate(examples, task, 4) == before


def test_generation_is_silent_and_greedy(ground, capfd):
    base, experts, task, examples = ground
    generate = Generator(base, TEMPLATE)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate.use(experts[0])
        first = generate(examples, task, 4)
    assert first == generate(examples, task, 4)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""
    assert json.loads((experts[0] / "adapter_config.json").read_text())["inference_mode"] is True
