"""Deltas and full models of a tiny LLaVA: what they answer, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_ext.adapters import save_adapter
from llava_ext.generate import Generator
from llava_ext.settings import Peft
from pipeline.config import read_config
from pipeline.plan import Plan
from pipeline.program import compose
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.delta import WEIGHTS
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
from tests.robustmerge.test_outputs import copy_out
from tests.tiny_model import TEMPLATE, draw_examples, write_base

IDS = torch.arange(10, 40).reshape(2, 15)


def save_llava_expert(folder: Path, base: Path, **settings: object) -> Path:
    """A random adapter of the tiny LLaVA, strong enough to change its answers."""
    plain = Peft()
    values = {"r": 4, "target_modules": plain.targets, "modules_to_save": list(plain.modules_to_save), **settings}
    torch.manual_seed(3)
    adapted = get_peft_model(LlavaForConditionalGeneration.from_pretrained(base), LoraConfig(**values))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or ("projector" in name and weight.requires_grad):
            torch.nn.init.normal_(weight, std=0.3)
    folder.mkdir()
    save_adapter(adapted, folder)
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, an expert, the same as deltas and as a full model, and questions with and without pictures."""
    root = tmp_path_factory.mktemp("ground")
    base = write_base(root / "base")
    expert = save_llava_expert(root / "expert", base)
    adapter = open_adapter(expert)
    delta, model = (copy_out(root / form, Out(format=form), adapter, base) for form in ("delta", "model"))
    return base, expert, delta, model, root, draw_examples(root, 10, seed=7)


def test_adapter_deltas_and_full_model_answer_alike(ground):
    base, expert, delta, model, root, examples = ground
    generate, whole = Generator(base, TEMPLATE), Generator(model, TEMPLATE)
    alone = generate(examples, root, 8)
    generate.use(expert)
    answers, logits = generate(examples, root, 8), generate.model(input_ids=IDS).logits
    assert answers != alone
    generate.use(delta)
    for found in (generate, whole):
        assert found(examples, root, 8) == answers
        assert torch.allclose(found.model(input_ids=IDS).logits, logits, atol=1e-4)


def test_a_full_model_of_dora_experts_is_what_peft_makes_of_them(ground, tmp_path):
    base = ground[0]
    dora = save_llava_expert(tmp_path / "dora", base, use_dora=True)
    folder = copy_out(tmp_path / "model", Out(format="model"), open_adapter(dora), base)
    generate = Generator(base, TEMPLATE)
    generate.use(dora)
    wanted = generate.model.state_dict()
    found = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in wanted.items())


def test_deltas_are_put_back_before_the_next_source(ground):
    base, expert, delta, _, root, examples = ground
    generate = Generator(base, TEMPLATE)
    clean = {name: weight.clone() for name, weight in generate.model.state_dict().items()}
    alone, answers = generate(examples, root, 8), []
    for source in (delta, expert, delta, None):
        generate.use(source)
        answers.append(generate(examples, root, 8))
    assert answers == [answers[0], answers[0], answers[0], alone]
    assert all(torch.equal(weight, clean[name]) for name, weight in generate.model.state_dict().items())


def change(folder: Path, copy: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, copy)
    tensors = load_file(copy / WEIGHTS)
    edit(tensors)
    save_file(tensors, copy / WEIGHTS)
    return copy


def fill(part: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: [tensor.fill_(value) for name, tensor in tensors.items() if part in name]


TOWER = "add.model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("edit", "dtype", "said"),
    [
        (lambda x: x.update({TOWER: torch.ones(32, 32)}), torch.float32, "must leave the vision tower alone, but ho"),
        (lambda x: x.update({"add.no.weight": torch.ones(2, 2)}), torch.float32, r"not understood \['no.weight'\]"),
        (lambda x: x.update({"add.lm_head.weight": torch.ones(2, 3)}), torch.float32, r"weight is \[2, 3\] there"),
        (fill("layers", float("nan")), torch.float32, "holds numbers that are not finite: model.language"),
        (fill("projector", float("inf")), torch.float32, "holds numbers that are not finite: model.multi_modal"),
        (fill("layers", 1e5), torch.float16, "cannot be merged into the base: .* does not fit torch.float16"),
    ],
    ids=["vision tower", "unknown", "shape", "nan", "projector", "overflow"],
)
def test_deltas_that_would_spoil_the_base_are_refused_and_it_stays_whole(ground, tmp_path, edit, dtype, said):
    base, _, delta, _, _, _ = ground
    spoilt = change(delta, tmp_path / "spoilt", edit)
    generate = Generator(base, TEMPLATE, dtype=dtype)
    before = {name: weight.clone() for name, weight in generate.model.state_dict().items()}
    with pytest.raises(UserError, match=said):
        generate.use(spoilt)
    assert all(torch.equal(weight, before[name]) for name, weight in generate.model.state_dict().items())


def test_a_weight_that_the_model_has_twice_is_not_changed_alone(ground, tmp_path):
    base, _, delta, _, _, _ = ground
    shutil.copytree(base, tmp_path / "tied")
    config = json.loads((base / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "tied" / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    generate = Generator(tmp_path / "tied", TEMPLATE)
    shape = generate.model.lm_head.weight.shape
    both = change(delta, tmp_path / "both", lambda x: x.update({"add.lm_head.weight": torch.ones(shape)}))
    with pytest.raises(UserError, match=r"cannot change lm_head\.weight alone: .*embed_tokens\.weight too"):
        generate.use(both)


def test_a_delta_folder_is_a_source_and_a_full_model_is_none(ground, tmp_path):
    base, _, delta, model, _, _ = ground
    with pytest.raises(UserError, match="but a full model: a base"):
        Generator(base, TEMPLATE).use(model)
    runs = f"paths.runs={tmp_path}"
    plan = Plan(read_config(compose("predict", [runs, f"source={delta}"])))
    source = plan.find_source(str(delta))
    assert (source.name, source.adapter) == ("adapter/delta", delta)
    with pytest.raises(UserError, match=r"is a full model, and a source is .*model\.checkpoint=FOLDER"):
        plan.find_source(str(model))
    with pytest.raises(UserError, match="or give a folder with adapter_config.json or delta_config.json"):
        plan.find_source("nowhere")


def test_a_method_that_writes_a_full_model_is_no_row_of_the_table(tmp_path):
    words = [f"paths.runs={tmp_path}", "merge=robustmerge", "merge.out.format=model", "merge.out.base=somewhere"]
    plan = Plan(read_config(compose("merge_eval", words)))
    with pytest.raises(UserError, match="merged/robustmerge is a full model, and a source is"):
        _ = plan.sources
