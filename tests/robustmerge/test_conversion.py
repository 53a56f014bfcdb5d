"""Adapters in LLaVA's own format are converted to PEFT and back unchanged; none loads wrongly without an error.

Needs no network. Refusals are in test_conversion_refusals.py, names from before transformers 4.52 in test_old_names.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_ext.adapters import load_adapter
from pipeline.program import compose
from pipeline.tools import convert
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.llava.configs import LLAVA15, Llava15Size
from robustmerge.formats.llava.from_peft import convert_to_original
from robustmerge.formats.llava.names import is_original, list_tensor_names
from robustmerge.formats.llava.to_peft import convert_to_peft
from robustmerge.formats.names import LANGUAGE_LINEARS
from robustmerge.stage.settings import UserError
from tests.original_layout import (
    ALPHA,
    FIRST,
    LAYERS,
    LLAVA_CONFIG,
    RANK,
    SHAPES,
    STEM,
    WIDTH,
    draw_lora,
    edit_config,
    read_original,
    write_original,
)
from tests.tiny_model import write_base

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def prefixed(old: str, new: str):
    """A change that spells the beginning of every name otherwise."""
    return lambda tensors: {new + name.removeprefix(old): x for name, x in tensors.items()}


# --- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", ["llava_llama", "llava"])
def test_an_original_is_converted_to_peft_and_back_with_every_byte_of_its_tensors(
    dtype, model_type, tmp_path: Path
) -> None:
    original = write_original(tmp_path / "odd name", dtype=dtype, llava=lambda c: {**c, "model_type": model_type})
    record = convert_to_peft(original, tmp_path / "ours", "hub/base")
    convert_to_original(tmp_path / "ours", tmp_path / "back")
    before, after = read_original(original), read_original(tmp_path / "back")
    assert list(after) == list(before)  # A before B, as in the files of peft
    for name, x in before.items():
        assert after[name].dtype == dtype and torch.equal(after[name].view(torch.uint8), x.view(torch.uint8)), name
    assert record["modules"] == LAYERS * 7 and record["dtype"] == str(dtype).removeprefix("torch.")
    config, old = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path / "back", original))
    assert {**config, "target_modules": set(config["target_modules"])} == {
        **old, "target_modules": set(old["target_modules"]),
    }  # fmt: skip
    llava = json.loads((tmp_path / "back" / "config.json").read_text())
    assert llava == {**LLAVA_CONFIG, "model_type": model_type, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}


SPELLINGS = {
    "lora without base_model": {"lora": prefixed("base_model.", "")},
    "lora with default": {"lora": lambda t: {re.sub(r"(lora_.)", r"\1.default", name): x for name, x in t.items()}},
    "bare projector": {"projector": prefixed(STEM, "")},
    "projector of a model": {"projector": prefixed(STEM, "model.")},
    "projector without base_model": {"projector": prefixed("base_model.", "")},
    "other order": {"lora": lambda t: dict(reversed(t.items())), "projector": lambda t: dict(reversed(t.items()))},
    "no config.json": {"llava": None},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_an_original_means_the_same_adapter(spelling: str, tmp_path: Path) -> None:
    for name, changes in (("plain", {}), ("odd", SPELLINGS[spelling])):
        convert_to_peft(write_original(tmp_path / name, **changes), tmp_path / f"{name} ours", "base")
    assert (tmp_path / "plain ours" / WEIGHTS).read_bytes() == (tmp_path / "odd ours" / WEIGHTS).read_bytes()
    assert (tmp_path / "plain ours" / CONFIG).read_bytes() == (tmp_path / "odd ours" / CONFIG).read_bytes()


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    write_original(tmp_path / "plain")
    old = write_original(tmp_path / "old")
    torch.save(draw_lora(), old / "adapter_model.bin", _use_new_zipfile_serialization=False)
    new = write_original(tmp_path / "new")
    (new / "adapter_model.bin").unlink()
    save_file(draw_lora(), new / WEIGHTS)
    for name in ("plain", "old", "new"):
        assert is_original(tmp_path / name)
        convert_to_peft(tmp_path / name, tmp_path / "to" / name, "base")
    assert len({(tmp_path / "to" / name / WEIGHTS).read_bytes() for name in ("plain", "old", "new")}) == 1


def test_alpha_is_read_and_never_assumed(tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", config=lambda c: {**c, "lora_alpha": 256})
    convert_to_peft(original, tmp_path / "ours", "base")
    adapter = open_adapter(tmp_path / "ours")
    lora = draw_lora()
    expected = 256 / RANK * lora[f"{FIRST}B.weight"] @ lora[f"{FIRST}A.weight"]
    pair = adapter.pair("model.language_model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(pair.delta(), expected, rtol=1e-6, atol=1e-6)


def test_a_conversion_depends_on_the_files_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert_to_peft(write_original(tmp_path / name), tmp_path / f"ours {name}", "base")
        convert_to_original(tmp_path / f"ours {name}", tmp_path / f"back {name}")
    for kind in ("ours", "back"):
        files = sorted(file.name for file in (tmp_path / f"{kind} a").iterdir())
        for file in files:
            if (kind, file) != ("back", "conversion.json"):  # has a note on the folder's name
                assert (tmp_path / f"{kind} a" / file).read_bytes() == (tmp_path / f"{kind} b" / file).read_bytes()


def test_base_and_config_of_llava_follow_from_the_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(LLAVA15, (LAYERS, WIDTH), Llava15Size("hub/base-hf", "hub/base", 2))
    convert_to_peft(write_original(tmp_path / "original"), tmp_path / "ours", "")
    assert open_adapter(tmp_path / "ours").config["base_model_name_or_path"] == "hub/base-hf"
    (tmp_path / "ours" / "conversion.json").unlink()  # as a merged adapter has none
    record = convert_to_original(tmp_path / "ours", tmp_path / "back")
    llava = json.loads((tmp_path / "back" / "config.json").read_text())
    assert record["base"] == "hub/base" and is_original(tmp_path / "back")
    shared = {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "mm_hidden_size", "vocab_size"}
    assert all(llava[key] == LLAVA_CONFIG[key] for key in shared)


# --- the converted model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def logits_of(model: nn.Module, base: Path) -> torch.Tensor:
    processor = AutoProcessor.from_pretrained(base)
    generator = torch.Generator().manual_seed(5)
    tokens = processor.tokenizer("USER: it ASSISTANT: red yes no").input_ids
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = torch.tensor([tokens[:1] + [image] * 4 + tokens[1:]])
    pixels = torch.randn(1, 3, 24, 24, generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels.to(model.dtype)).logits


def test_a_converted_expert_is_the_function_of_the_original_arithmetic(base: Path, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original")
    convert_to_peft(original, tmp_path / "ours", str(base))
    # In float64, so that the order of the sums does not count.
    adapted = load_adapter(LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "ours").eval().double()
    by_hand = LlavaForConditionalGeneration.from_pretrained(base).eval().double()
    untouched = logits_of(by_hand, base)
    tensors, weights = read_original(original), by_hand.state_dict()
    for layer in range(LAYERS):
        for linear in SHAPES:
            A, B = (tensors[f"{STEM}layers.{layer}.{linear}.lora_{part}.weight"] for part in "AB")
            weights[f"model.language_model.layers.{layer}.{linear}.weight"] += ALPHA / RANK * B.double() @ A.double()
    for index, linear in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            weights[f"model.multi_modal_projector.{linear}.{kind}"].copy_(tensors[f"{STEM}mm_projector.{index}.{kind}"])
    expected = logits_of(by_hand, base)
    assert (expected - untouched).abs().max() > 0.1
    close = {"rtol": 0, "atol": 1e-6 * float(expected.abs().max())}
    torch.testing.assert_close(logits_of(adapted, base), expected, **close)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, base), expected, **close)
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)


def test_all_tensors_of_a_converted_expert_are_loaded_and_none_in_the_vision_tower(base: Path, tmp_path: Path) -> None:
    convert_to_peft(write_original(tmp_path / "original"), tmp_path / "ours", str(base))
    model = load_adapter(LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "ours")
    lora = {name: x for name, x in model.named_parameters() if ".lora_" in name}
    assert len(lora) == LAYERS * 14 and not any("vision_tower" in name for name in lora)
    assert all(x.any() for x in lora.values())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], LANGUAGE_LINEARS])
def test_an_original_is_never_loaded_as_it_is(targets, base: Path, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", config=lambda c: {**c, "target_modules": targets})
    model = LlavaForConditionalGeneration.from_pretrained(base)
    with pytest.raises(UserError, match="non_lora_trainables.bin must be converted"):
        load_adapter(model, original)
    (original / "non_lora_trainables.bin").unlink()
    (original / "config.json").unlink()
    with pytest.raises(UserError, match="checkpoint of LLaVA's own trainer"):
        load_adapter(model, original)
    with pytest.raises(UserError, match="does not fit this model"):
        load_adapter(model, edit_config(original, base_model_name_or_path="some/llama"))


def test_suffixes_as_targets_put_no_lora_into_the_vision_tower(base: Path, tmp_path: Path) -> None:
    convert_to_peft(write_original(tmp_path / "original"), tmp_path / "ours", str(base))
    edit_config(tmp_path / "ours", target_modules=[linear.rpartition(".")[2] for linear in SHAPES])
    model = load_adapter(LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "ours")
    assert sum(".lora_" in name for name, _ in model.named_parameters()) == LAYERS * 14


# --- recognition --------------------------------------------------------------------------------------------------


def test_an_original_is_recognised_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    original = write_original(tmp_path / "x")
    convert_to_peft(original, tmp_path / "llava_lora_original", "base")
    assert is_original(original) and not is_original(tmp_path / "llava_lora_original")
    assert is_original(write_original(tmp_path / "no projector", projector=None))
    assert is_original(write_original(tmp_path / "no config", llava=None))
    of_a_llama = write_original(tmp_path / "llava-lora", projector=None, llava=lambda c: {"model_type": "llama"})
    assert not is_original(of_a_llama) and not is_original(tmp_path) and not is_original(tmp_path / "nowhere")
    (original / "adapter_model.bin").write_bytes((original / "adapter_model.bin").read_bytes()[:4000])
    assert list_tensor_names(original / "adapter_model.bin") == set() and not is_original(original)


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    original, Evil.place = write_original(tmp_path / "original"), str(tmp_path / "ran")
    for file in ("adapter_model.bin", "non_lora_trainables.bin"):
        content = (original / file).read_bytes()
        torch.save({**draw_lora(), "evil": Evil()}, original / file)
        with pytest.raises(UserError, match="what could run code is not unpickled"):
            convert_to_peft(original, tmp_path / "ours", "base")
        (original / file).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(UserError):
            convert_to_peft(original, tmp_path / "ours", "base")
        (original / file).write_bytes(content)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()


# --- the command --------------------------------------------------------------------------------------------------


def run_convert(tmp_path: Path, *words: str) -> None:
    convert.convert([compose("convert", [f"paths.runs={tmp_path}/runs", *words])])


def test_the_command_converts_what_it_can_and_leaves_alone_what_is_complete(tmp_path: Path, capsys) -> None:
    for seed, name in enumerate("ab"):
        write_original(tmp_path / name, seed)
    write_original(tmp_path / "c", projector=None)
    words = (f"adapters=[{tmp_path}/a,second:{tmp_path}/b,{tmp_path}/c]", f"out={tmp_path}/out", "base=hub/base")
    with pytest.raises(UserError, match=r"^c: .*non_lora_trainables.bin is missing"):
        run_convert(tmp_path, "to=peft", *words)
    output = capsys.readouterr().out
    assert "[2/3] second: 28 LoRA tensors (2 layers, rank 4, alpha 8, float32), 4 of the projector" in output
    assert f"experts=[a:{tmp_path}/out/a,second:{tmp_path}/out/second]" in output
    written = (tmp_path / "out" / "a" / WEIGHTS).stat().st_mtime_ns
    (tmp_path / "out" / "second" / CONFIG).unlink()  # as a kill would leave it
    run_convert(tmp_path, "to=peft", "allow_no_projector=true", *words)
    output = capsys.readouterr().out
    assert "a: complete, left alone" in output and "second: 28 LoRA" in output and "c: 28 LoRA tensors" in output
    assert (tmp_path / "out" / "a" / WEIGHTS).stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds another conversion than is asked for"):
        run_convert(tmp_path, "to=peft", *words[:2], "base=hub/other")
    run_convert(tmp_path, "to=original", f"adapters=[{tmp_path}/out/a]", f"out={tmp_path}/back")
    back = read_original(tmp_path / "back" / "llava-lora-a")
    assert all(torch.equal(x, back[name]) for name, x in read_original(tmp_path / "a").items())


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    write_original(tmp_path / "a")
    words = ("to=peft", f"adapters=[{tmp_path}/a]", f"out={tmp_path}/out")
    shutil.copytree(tmp_path / "a", tmp_path / "out" / "a")
    with pytest.raises(UserError, match=r"holds trainer_state.json, which no conversion writes"):
        run_convert(tmp_path, *words)
    (tmp_path / "out" / "a" / "trainer_state.json").unlink()
    with pytest.raises(UserError, match="holds an adapter already"):
        run_convert(tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["to=pefd", "adapters=[a]"], "unknown format 'pefd'; choose one of original, peft (did you mean 'peft'?)"),
        (["to=peft"], "name at least one adapter"),
        (["adapters=[a]"], "missing value (to)"),
        (["to=original", "adapters=[a]", "base=b"], "base is for to=peft"),
        (["to=original", "adapters=[a]", "like=/nowhere"], "there is no folder /nowhere (like)"),
        (["to=peft", "adapters=[one:/nowhere]"], "there is no folder /nowhere, and a repository"),
        (["to=peft", "adapters=[x:a,x:b]"], "'x' is no name, or of two adapters"),
    ],
    ids=str,
)
def test_mistakes_on_the_command_line_are_explained(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run_convert(tmp_path, f"out={tmp_path}/out", *words)
