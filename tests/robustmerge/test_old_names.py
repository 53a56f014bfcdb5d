"""PEFT adapters from before transformers 4.52: as sources, merged, and converted to current names.

Needs no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from llava_ext.adapters import load_adapter
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import PATTERNS, WEIGHTS
from robustmerge.formats.llava.from_peft import convert_to_original
from robustmerge.formats.llava.to_peft import convert_to_peft
from robustmerge.formats.names import LANGUAGE_LINEARS
from robustmerge.merging import write_merged
from robustmerge.method import Method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET
from tests.original_layout import LAYERS, RANK, SHAPES, edit_config, read_original, write_original
from tests.tiny_model import SMALL, write_base

SUFFIXES = [linear.rpartition(".")[2] for linear in SHAPES]
TARGETS = {
    "suffixes": SUFFIXES,
    "one expression": r".*language_model.*\.(" + "|".join(SUFFIXES) + ")",
    "an expression of the old level": r"language_model\.model\.layers\.\d+\..*_proj",
    "an expression of nothing": "nothing",
    "full names": [f"language_model.model.layers.{layer}.{linear}" for layer in range(LAYERS) for linear in SHAPES],
}


def write_old(folder: Path, seed: int = 0, targets: object = SUFFIXES) -> Path:
    """An expert with old names; beside it, in a folder ending in ` new`, the same with current ones."""
    new = folder.with_name(f"{folder.name} new")
    convert_to_peft(write_original(folder.with_name(f"{folder.name} original"), seed), new, "base")
    folder.mkdir()
    tensors = load_file(new / WEIGHTS)
    old = {
        name.replace(".model.model.language_model.", ".model.language_model.model.").replace(
            ".model.model.multi_modal_projector.", ".model.multi_modal_projector."
        ): x
        for name, x in tensors.items()
    }
    assert old.keys().isdisjoint(tensors)
    save_file(old, folder / WEIGHTS)
    (folder / "adapter_config.json").write_bytes((new / "adapter_config.json").read_bytes())
    return edit_config(folder, target_modules=targets)


def merge_into(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    model = load_adapter(LlavaForConditionalGeneration.from_pretrained(base), folder)
    return model.merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_with_old_names_is_the_same_model_as_with_current_ones(targets, base, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", targets=TARGETS[targets])
    weights, expected = merge_into(base, old), merge_into(base, tmp_path / "old new")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], x) for name, x in expected.items())


def test_adapters_with_old_names_merge_into_the_same_model(base: Path, tmp_path: Path) -> None:
    folders = {name: write_old(tmp_path / name, seed) for seed, name in enumerate("ab")}
    new = {name: tmp_path / f"{name} new" for name in "ab"}
    for name, experts in (("merged old", folders), ("merged new", new)):
        write_merged(tmp_path / name, Method("sum", strength=1.0), experts, **QUIET)
    weights, expected = merge_into(base, tmp_path / "merged old"), merge_into(base, tmp_path / "merged new")
    assert all(torch.equal(weights[name], x) for name, x in expected.items())


def test_old_names_merge_with_current_ones_and_a_conversion_gives_current_ones(tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", targets=LANGUAGE_LINEARS)
    write_old(tmp_path / "other", 1)
    mixed, current = tmp_path / "mixed", tmp_path / "current"
    for folder, experts in (
        (mixed, (old, tmp_path / "other new")),
        (current, (tmp_path / "old new", tmp_path / "other new")),
    ):
        write_merged(folder, Method("sum", strength=1.0), dict(zip("ab", experts, strict=True)), **QUIET)
    merged, expected = load_file(mixed / WEIGHTS), load_file(current / WEIGHTS)
    assert merged.keys() == expected.keys() and all(torch.equal(merged[name], x) for name, x in expected.items())
    record = convert_to_peft(old, tmp_path / "new", "base")
    assert (tmp_path / "new" / WEIGHTS).read_bytes() == (tmp_path / "old new" / WEIGHTS).read_bytes()
    adapter = open_adapter(tmp_path / "new")
    assert adapter.config["target_modules"] == LANGUAGE_LINEARS and record["modules"] == LAYERS * 7


def test_an_adapter_of_some_linears_keeps_its_targets(base: Path, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", targets=["q_proj", "v_proj"])
    tensors = {name: x for name, x in load_file(old / WEIGHTS).items() if "lora" not in name or ".q_" in name}
    save_file(tensors, old / WEIGHTS)
    edit_config(old, target_modules=["q_proj"])
    convert_to_peft(old, tmp_path / "new", "base")
    weights, expected = merge_into(base, tmp_path / "new"), merge_into(base, old)
    assert all(torch.equal(weights[name], x) for name, x in expected.items())
    with pytest.raises(UserError, match="is missing; an adapter of 2 layers has 28 LoRA tensors, this one 4"):
        convert_to_original(tmp_path / "new", tmp_path / "back", like=tmp_path / "old original")


def test_adapters_with_old_names_are_converted_to_the_original_format(tmp_path: Path) -> None:
    old = write_old(tmp_path / "old")
    convert_to_original(old, tmp_path / "back", like=tmp_path / "old original")
    expected = read_original(tmp_path / "old original")
    weights = read_original(tmp_path / "back")
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], x) for name, x in expected.items())


def test_a_missing_tensor_with_an_old_name_is_an_error_and_not_initialised(base: Path, tmp_path: Path) -> None:
    old = write_old(tmp_path / "old")
    tensors = load_file(old / WEIGHTS)
    del tensors["base_model.model.language_model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, old / WEIGHTS)
    with pytest.raises(UserError, match="layers.1.mlp.up_proj': it has lora_A.weight but no lora_B.weight"):
        load_adapter(LlavaForConditionalGeneration.from_pretrained(base), old)


def rename(pattern: str, replacement: str) -> Callable[[str], str]:
    return lambda name: re.sub(pattern, replacement, name)


SPELLINGS = {
    "of torch.compile": rename(r"^base_model\.model\.", "base_model.model._orig_mod."),
    "of FSDP": rename(r"\.layers\.(\d+)\.", r".layers.\1._fsdp_wrapped_module."),
    "of DDP": rename("^", "module."),
    "of an adapter with a name": rename(r"(lora_[AB])\.", r"\1.default_0."),
    "of a model that was wrapped twice": rename("^", "base_model.model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_names_is_the_same_model_and_none_is_left_out(spelling, base: Path, tmp_path: Path) -> None:
    patterns = {"alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "rank_pattern": {"q_proj": RANK}}
    edit_config(write_old(tmp_path / "old"), **patterns)
    edit_config(tmp_path / "old new", **patterns)
    tensors = load_file(tmp_path / "old" / WEIGHTS)
    save_file({SPELLINGS[spelling](name): x for name, x in tensors.items()}, tmp_path / "old" / WEIGHTS)
    weights, expected = merge_into(base, tmp_path / "old"), merge_into(base, tmp_path / "old new")
    assert all(torch.equal(weights[name], x) for name, x in expected.items())
    convert_to_peft(tmp_path / "old", tmp_path / "converted", "base")
    assert (tmp_path / "converted" / WEIGHTS).read_bytes() == (tmp_path / "old new" / WEIGHTS).read_bytes()
    converted, new = open_adapter(tmp_path / "converted"), open_adapter(tmp_path / "old new")
    assert all(converted.config[key] == new.config[key] for key in PATTERNS)


def test_values_that_are_trained_whole_are_loaded_though_the_config_lists_none(base: Path, tmp_path: Path) -> None:
    write_old(tmp_path / "old")
    new, name = tmp_path / "old new", "model.language_model.norm.weight"
    norm = torch.full((SMALL.language.width,), 0.5)
    save_file({**load_file(new / WEIGHTS), f"base_model.model.{name}": norm}, new / WEIGHTS)
    assert torch.equal(merge_into(base, new)[name], norm)
