"""Experts of bases as the Hub keeps them, LoRA, rsLoRA and DoRA: trained, loaded by PEFT, merged, and answered with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_ext.data import encode_prompt, load_reader, pad
from llava_ext.generate import Generator
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, train_expert
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.merging import merge_folders
from robustmerge.stage.address import Address
from robustmerge.stage.pictures import read_picture
from tests import hub_layout, interleave_layout
from tests.tiny_model import draw_examples, write_task

LAYOUTS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "llava15": (hub_layout.write_checkpoint, "vicuna_v1"),
    "interleave": (interleave_layout.write_checkpoint, "qwen_1_5"),
}
KINDS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
LINEARS = {f"self_attn.{part}_proj" for part in "qkvo"} | {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-2, global_batch=4, max_steps=2, save_steps=0)


assert_close = partial(torch.testing.assert_close, atol=1e-3, rtol=1e-3)


@dataclass(frozen=True)
class Trained:
    """A base, its template, two experts of it by name, and a folder with questions."""

    base: Path
    template: str
    experts: dict[str, Path]
    root: Path

    def logits(self, model: torch.nn.Module) -> Tensor:
        """Of the token behind each prompt, of a few questions with and without a picture."""
        reader, examples = load_reader(self.base, self.template), draw_examples(self.root, 4, seed=9)
        prompts = [encode_prompt(reader, example) for example in examples]
        pictures = [self.root / example.image for example in examples if example.image]
        ids, mask = pad(prompts, 0, "left"), pad([[1] * len(prompt) for prompt in prompts], 0, "left")
        pixels = reader.pixels([read_picture(picture) for picture in pictures])
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits[:, -1]

    def load(self, adapter: Path | None = None) -> torch.nn.Module:
        """The base, with an adapter, as transformers and PEFT alone load it."""
        model = LlavaForConditionalGeneration.from_pretrained(self.base, dtype=torch.float32).eval()
        return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@pytest.fixture(scope="module", params=[("llava15", "LoRA"), *(("interleave", kind) for kind in KINDS)], ids=" ".join)
def trained(request, tmp_path_factory) -> Trained:
    (write, template), peft = LAYOUTS[request.param[0]], Peft(r=4, **KINDS[request.param[1]])
    root = tmp_path_factory.mktemp("trained")
    base, experts = write(root / "base"), {}
    for seed, task in enumerate(("one", "two")):
        data = write_task(root / task, seed=seed)
        trainer = Trainer(gradient_checkpointing=True)
        settings = Expert(tasks=(task,), template=template, recipe=RECIPE, peft=peft, trainer=trainer)
        address = Address(root, root / f"expert-{task}", {"stage": "train", "name": task})
        experts[task] = train_expert(address, settings, base, {task: data}, LLAVA_TRAINING, lambda _: None)
    return Trained(base, template, experts, root)


def test_lora_is_on_the_seven_linears_of_every_layer_of_the_language_model_and_on_nothing_else(trained):
    for folder in trained.experts.values():
        names = load_file(folder / WEIGHTS)
        found = {name.split(".lora_")[0] for name in names if ".lora_" in name}
        layers = range(hub_layout.LANGUAGE["num_hidden_layers"])
        at = "base_model.model.model.language_model.layers"
        assert found == {f"{at}.{layer}.{linear}" for layer in layers for linear in LINEARS}
        assert {name for name in names if not re.search(r"\.lora_", name)} == {
            f"base_model.model.model.multi_modal_projector.linear_{n}.{kind}"
            for n in (1, 2)
            for kind in ("weight", "bias")
        }
        assert all(weight.any() for name, weight in names.items() if "lora_B" in name)


def test_a_trained_expert_is_the_same_model_to_peft_and_here(trained):
    generator = Generator(trained.base, trained.template)
    generator.use(trained.experts["one"])
    expected = trained.logits(trained.load(trained.experts["one"]))
    assert_close(trained.logits(generator.model), expected)
    assert (expected - trained.logits(trained.load())).abs().max() > 0.1


def test_the_merge_of_one_expert_is_that_expert_and_a_merge_of_two_answers(trained, tmp_path):
    one = trained.experts["one"]
    alone = merge_folders([one], "average", tmp_path / "alone", say=lambda _: None)
    assert_close(trained.logits(trained.load(alone)), trained.logits(trained.load(one)))
    merged = merge_folders(trained.experts, "robustmerge", tmp_path / "merged", say=lambda _: None)
    generator = Generator(trained.base, trained.template)
    generator.use(merged)
    assert_close(trained.logits(generator.model), trained.logits(trained.load(merged)))
    assert len(generator(draw_examples(trained.root, 4, seed=9), trained.root, 2)) == 4
