"""DoRA experts of a tiny LLaVA: trained, merged, and answered with."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from llava_ext.generate import Generator
from llava_ext.settings import Expert, Peft, Recipe
from llava_ext.train import LLAVA_TRAINING, train_expert
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.merging import merge_folders
from robustmerge.stage.address import Address
from tests.tiny_model import TEMPLATE, draw_examples, write_base, write_task

RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=3, save_steps=0)


def test_dora_experts_are_trained_merged_and_answered_with(tmp_path):
    base = write_base(tmp_path / "base")
    experts = {}
    for seed, task in enumerate(("one", "two")):
        data = write_task(tmp_path / task, seed=seed)
        settings = Expert(tasks=(task,), template=TEMPLATE, recipe=RECIPE, peft=Peft(r=4, use_dora=True))
        address = Address(tmp_path, tmp_path / f"expert-{task}", {"stage": "train", "name": task})
        experts[task] = train_expert(address, settings, base, {task: data}, LLAVA_TRAINING, lambda _: None)
    adapters = [open_adapter(folder, name) for name, folder in experts.items()]
    assert all(a.is_dora for a in adapters)
    weight = load_file(base / "model.safetensors")["language_model.model.layers.0.self_attn.q_proj.weight"]
    module = "model.language_model.layers.0.self_attn.q_proj"
    magnitudes = [a.magnitude(module) for a in adapters]
    for m in magnitudes:  # learned, from the norms of the rows of the base
        assert 0 < (m - weight.norm(dim=1)).abs().max() < 0.1
    merged = merge_folders(experts, "robustmerge", tmp_path / "merged", say=lambda _: None)
    found = load_file(merged / WEIGHTS)[f"base_model.model.{module}.lora_magnitude_vector"]
    torch.testing.assert_close(found, sum(magnitudes) / 2)
    generate = Generator(base, TEMPLATE)
    examples = draw_examples(tmp_path, 6, seed=7)
    generate.use(merged)
    assert len(generate(examples, tmp_path, 8)) == 6
    in_place = generate.model.state_dict()[f"{module}.weight"]
    pair = open_adapter(merged).pair(module)
    direction = weight + pair.delta()
    expected = found[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(in_place, expected, rtol=1e-4, atol=1e-5)
