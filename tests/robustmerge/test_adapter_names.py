"""Adapters as wrappers, older libraries and settings leave them: the same function under today's names, or refused.

Today's names are those that peft writes for the model that transformers build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from robustmerge.formats.adapter import LoraPair, open_adapter, open_adapters
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.checkpoint import open_checkpoint
from robustmerge.formats.names import FAMILIES, PREFIX, QWEN_VL, move
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import Method, read_method
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
from tests.merge_cases import (
    QUIET,
    load_with_peft,
    random_experts,
    read_back,
    rewrite_tensors,
    save_expert,
    write_expert,
)

SUM = Method("sum", strength=1.0)
FULL = ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"]
IDS = torch.arange(6)[None]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.*tied"),
]


def change_config(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))
    return folder


def rename(folder: Path, change: Callable[[str], str]) -> Path:
    rewrite_tensors(folder, lambda tensors: {change(name): x for name, x in tensors.items()})
    return folder


def merge_one(expert: Path, **out: Any) -> Path:
    """Merge one expert by a neutral method."""
    merged = expert.with_name(f"{expert.name} merged")
    write_merged(merged, Method("sum", strength=1.0, out=Out(**out)), {"expert": expert}, **QUIET)
    return merged


# --- words of wrappers, prefixes, names of adapters ---------------------------------------------------------------

WRAPPED = {
    "torch.compile": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace(".layers.", "._fsdp_wrapped_module.layers."),
    "checkpointed": lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    "DeepSpeed": lambda name: f"module._forward_module.{name}",
    "DDP within": lambda name: name.replace(PREFIX, f"{PREFIX}module."),
    "wrapped twice": lambda name: name.replace(PREFIX, PREFIX + PREFIX),
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "an attribute of another model": lambda name: f"model.module.{name}",
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_the_words_of_wrappers_are_no_part_of_a_name(wrapped: str, tmp_path: Path) -> None:
    expected = save_expert(tmp_path / "expert", modules_to_save=["projector"])
    change_config(rename(tmp_path / "expert", WRAPPED[wrapped]), auto_mapping=None)
    merged = merge_one(tmp_path / "expert")
    torch.testing.assert_close(load_with_peft(merged), expected)
    assert json.loads((merged / CONFIG).read_text())["target_modules"] == FULL
    said: list[str] = []
    write_merged(tmp_path / "again", SUM, {"expert": tmp_path / "expert"}, said.append)
    assert "names of modules of expert brought to today's" in said[-1]


def test_an_adapters_own_name_is_left_out(tmp_path: Path) -> None:
    expected = save_expert(tmp_path / "expert", modules_to_save=["projector"], use_dora=True)
    rename(tmp_path / "expert", lambda name: re.sub(r"(lora_\w+)|(projector)", _with_name, name))
    merged = merge_one(tmp_path / "expert")
    torch.testing.assert_close(load_with_peft(merged), expected)
    assert json.loads((merged / CONFIG).read_text())["target_modules"] == ["q", "v"]


def _with_name(match: re.Match) -> str:
    return f"{match[0]}.vqa" if match[1] else f"{match[0]}.modules_to_save.vqa"


def test_patterns_of_a_config_are_for_the_names_in_training(tmp_path: Path) -> None:
    patterns = {"layers.0.q": 2}
    expected = save_expert(tmp_path / "expert", rank_pattern=patterns, alpha_pattern={"^layers.1.v": 11})
    rename(tmp_path / "expert", WRAPPED["torch.compile"])
    change_config(tmp_path / "expert", alpha_pattern={r"^_orig_mod\.layers.1.v": 11})
    torch.testing.assert_close(load_with_peft(merge_one(tmp_path / "expert")), expected)


def two_adapters(name: str) -> str:
    return re.sub(r"(layers\.(\d)\.q\.lora_[AB])", r"\1.of_\2", name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (two_adapters, "tensors of several adapters, 'default' and 'of_0' and 'of_1'"),
        (lambda name: name.replace("base_model.model.", "base_model."), "named with only a part of the prefix base_mo"),
        (lambda name: name.replace("layers.0.q", "layers.0..q"), "named with nothing between two dots"),
        (
            lambda name: f"model.{name}" if "layers.0" in name else name,
            "named with words before base_model.model. that",
        ),
        (lambda name: name.replace("layers.0.q", "layers.0._flat_param"), "are of FSDP's flattened weights"),
        (WRAPPED["DDP within"], "named with 'module.' after base_model.model., which may be a wrapper's"),
        (WRAPPED["wrapped twice"], "second PeftModel) or of the model's class Tiny; rename"),
    ],
    ids=[
        "two adapters",
        "half a prefix",
        "two dots",
        "words before",
        "flattened",
        "DDP of one's own class",
        "one's own class twice",
    ],
)
def test_a_name_that_may_mean_two_things_is_refused(change: Callable[[str], str], told: str, tmp_path: Path) -> None:
    save_expert(tmp_path / "expert")
    with pytest.raises(UserError, match=re.escape(told)):
        open_adapter(rename(tmp_path / "expert", change))


def test_two_names_that_become_one_are_refused_and_both_are_named(tmp_path: Path) -> None:
    save_expert(tmp_path / "expert")
    again = {f"{PREFIX}_orig_mod.layers.0.q.lora_A.weight": torch.ones(3, 6)}
    rewrite_tensors(tmp_path / "expert", lambda tensors: tensors | again)
    told = r"_orig_mod.layers.0.q.lora_A.weight and base_model.model.layers.0.q.lora_A.weight are two spellings of one"
    with pytest.raises(UserError, match=told):
        open_adapter(tmp_path / "expert")


def test_thousands_of_names_are_read_at_once_and_told_in_few_lines(tmp_path: Path) -> None:
    pairs = {f"layers.{n}.q": LORA for n in range(1000)}
    others = {f"{PREFIX}layers.{n}.mlp.weight": torch.ones(1) for n in range(1000)}
    with pytest.raises(UserError) as refused:
        open_adapter(write_expert(tmp_path / "expert", pairs, others))
    assert str(refused.value).endswith(
        "layers.0.mlp.weight and 999 more are neither lora_A or lora_B of a layer nor of modules_to_save"
    )


LORA = random_experts("a", ("q",), rank=1)["a"]["q"]

# --- names of transformers before 4.52 ----------------------------------------------------------------------------

TODAY = ("model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.mlp.up_proj")
BEFORE = {
    "llava": ("language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.mlp.up_proj"),
    "qwen2_5_vl": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"),
}
PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize("kind", FAMILIES)
def test_names_move_as_transformers_move_them(kind: str) -> None:
    by_class = {"gpt_neox": "GPTNeoXForCausalLM"}.get(kind, "Qwen2VLForConditionalGeneration")
    for one in get_checkpoint_conversion_mapping(kind) or get_checkpoint_conversion_mapping(by_class):
        (pattern,), (target,) = one.source_patterns, one.target_patterns
        before = re.sub(r"\(\?!.*\)|\\\.$", "", pattern.lstrip("^"))
        today = re.sub(pattern, target, f"{before}.x.weight")
        assert (move(f"{before}.x.weight", FAMILIES[kind]), move(today, FAMILIES[kind])) == (today, today)


def write_named(folder: Path, modules: tuple[str, ...], projector: str = "", **config: Any) -> Path:
    pairs = random_experts(folder.name[0], modules)[folder.name[0]]
    saved = {f"{PREFIX}{projector}": torch.ones(3)} if projector else {}
    listed = ["multi_modal_projector"] if projector else None
    return write_expert(folder, pairs, saved, modules_to_save=listed, **config)


@pytest.mark.parametrize("kind", BEFORE)
def test_names_of_before_become_those_of_today_where_another_expert_has_them(kind: str, tmp_path: Path) -> None:
    has_projector = kind == "llava"
    old = write_named(tmp_path / "a", BEFORE[kind], PROJECTOR if has_projector else "")
    new = write_named(tmp_path / "b", TODAY, f"model.{PROJECTOR}" if has_projector else "")
    (a, b), problems = open_adapters({"a": old, "b": new})
    assert not problems and a.modules == b.modules == TODAY and a.extras == b.extras
    write_merged(tmp_path / "merged", SUM, {"a": old, "b": new}, **QUIET)
    assert {name for name in read_back(tmp_path / "merged") if "lora_A" in name} == {
        f"{m}.lora_A.weight" for m in TODAY
    }
    assert json.loads((tmp_path / "merged" / CONFIG).read_text())["target_modules"] == sorted(TODAY)


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize("known_by", ["base", "class", "name", "nothing", "code of its own"])
def test_names_of_before_become_those_of_today_only_where_the_model_is_known(
    known_by: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    code = {"auto_map": {"AutoModel": "modeling.Mine"}} if known_by == "code of its own" else {}
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": kind, **code}))
    config: dict[str, Any] = {
        "class": {"auto_mapping": {"base_model_class": "M", "parent_library": f"transformers.models.{kind}.modeling"}},
        "name": {"base_model_name_or_path": {"llava": "llava-hf/llava-1.5", "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B"}[kind]},
        "nothing": {"base_model_name_or_path": "a/b"},
    }.get(known_by, {"base_model_name_or_path": str(tmp_path / "base")})
    adapter = open_adapter(write_named(tmp_path / "a", BEFORE[kind], **config))
    is_known = known_by in ("base", "class", "name")
    assert adapter.modules == (TODAY if is_known else BEFORE[kind]) and adapter.renamed == is_known


def test_names_of_a_llama_stay_beside_those_of_another_base(tmp_path: Path) -> None:
    llama = write_named(tmp_path / "a", BEFORE["qwen2_5_vl"], base_model_name_or_path="a/llama")
    (a, _), _ = open_adapters({"a": llama, "b": write_named(tmp_path / "b", TODAY)})
    assert a.modules == BEFORE["qwen2_5_vl"]


def test_a_name_of_before_and_one_of_today_for_one_module_are_refused(tmp_path: Path) -> None:
    folder = write_named(tmp_path / "a", (*TODAY, BEFORE["llava"][0]), base_model_name_or_path="llava-hf/llava")
    with pytest.raises(
        UserError, match=r"'language_model\.model\..*' and 'model\.language_model\..*' are names of befor"
    ):
        open_adapter(folder)


def test_a_qwen_vl_is_found_in_its_base_under_either_name(tmp_path: Path) -> None:
    text = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    tokens = {"image_token_id": 50, "video_token_id": 51, "vision_start_token_id": 52, "vision_end_token_id": 53}
    base, expert = tmp_path / "base", tmp_path / "expert"
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    model.save_pretrained(base)
    assert "visual.blocks.0.mlp.down_proj.weight" in load_file(base / "model.safetensors")
    model.name_or_path = str(base)
    expected = save_random(expert, model, target_modules=r".*language_model.*down_proj")
    rename(expert, lambda name: name.replace("model.language_model.", "model."))
    change_config(expert, target_modules=["down_proj"], auto_mapping=None)
    bases = {"names of before": base, "names of today": tmp_path / "today"}
    bases["names of today"].mkdir()
    (bases["names of today"] / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = {move(name, QWEN_VL): x for name, x in load_file(base / "model.safetensors").items()}
    save_file(tensors, bases["names of today"] / "model.safetensors", metadata={"format": "pt"})
    for kind, folder in bases.items():
        merged = tmp_path / kind
        method = Method("sum", strength=1.0, out=Out(format="model", base=str(folder)))
        write_merged(merged, method, {"expert": expert}, **QUIET)
        assert (merged / "config.json").is_file()  # a model without one would be of 72 billion parameters
        torch.testing.assert_close(logits(Qwen2_5_VLForConditionalGeneration.from_pretrained(merged)), expected)
    reloaded = PeftModel.from_pretrained(Qwen2_5_VLForConditionalGeneration.from_pretrained(base), merge_one(expert))
    torch.testing.assert_close(logits(reloaded), expected)


def test_no_part_of_another_model_is_taken_for_a_layer(tmp_path: Path) -> None:
    names = ("model.layers.0.up.weight", "vision.layers.0.down.weight", "lm_head.weight")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")
    base = open_checkpoint(tmp_path)
    for parameter in ("layers.0.down.weight", "layers.0.up.weight"):
        with pytest.raises(UserError, match="has no tensor"):
            base.find(parameter, (2, 2), torch.float32)


# --- what is not LoRA ---------------------------------------------------------------------------------------------


def make_llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def save_random(folder: Path, model: torch.nn.Module, seed: int = 0, **config: Any) -> torch.Tensor:
    """Save a random adapter of a model, and return the logits with it."""
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **config))
    torch.manual_seed(seed + 1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return logits(adapted)


def test_the_frozen_head_beside_its_lora_is_left_out_where_all_experts_have_the_same(tmp_path: Path) -> None:
    expected = save_random(tmp_path / "expert", make_llama(), target_modules=["q_proj", "lm_head"])
    head = f"{PREFIX}lm_head.base_layer.weight"
    assert head in load_file(tmp_path / "expert" / WEIGHTS)
    merged = merge_one(tmp_path / "expert")
    assert head not in load_file(merged / WEIGHTS)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make_llama(), merged)), expected)
    save_random(tmp_path / "other", make_llama(), 1, target_modules=["q_proj", "lm_head"])
    merge_folders([tmp_path / "expert", tmp_path / "other"], "ties", tmp_path / "two", **QUIET)
    rewrite_tensors(tmp_path / "other", lambda tensors: tensors | {head: tensors[head] + 1})
    with pytest.raises(
        UserError, match=r"'lm_head.weight', a weight of the base .* differs between .* expert and other"
    ):
        merge_folders([tmp_path / "expert", tmp_path / "other"], "ties", tmp_path / "three", **QUIET)


def test_a_weight_of_the_base_beside_lora_of_anything_but_a_head_is_refused(tmp_path: Path) -> None:
    pairs = random_experts("a")["a"]
    saved = {f"{PREFIX}layers.0.q.base_layer.{part}": torch.randn(7, 10) for part in ("weight", "bias")}
    with pytest.raises(UserError, match="layers.0.q.base_layer.* and 1 more are neither lora_A or lora_B"):
        open_adapter(write_expert(tmp_path / "a", pairs, saved))


def test_lora_of_a_head_that_was_resized_is_refused(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(22)
    save_random(tmp_path / "expert", model, target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"'lm_head.weight' is \[22, 8\] and the base's vocabulary 20: it was resized"):
        open_adapter(tmp_path / "expert")


@pytest.mark.parametrize("listed", [None, ["embed_tokens", "lm_head"]], ids=["not listed", "listed"])
def test_resized_embeddings_are_trained_values_of_all_experts_or_refused(listed: list | None, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    expected = {}
    for seed, name in enumerate("ab"):
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(22)
        expected[name] = save_random(tmp_path / name, model, seed, target_modules=["q_proj"], modules_to_save=listed)
    base = make_llama()
    base.resize_token_embeddings(22)
    again = logits(PeftModel.from_pretrained(base, merge_one(tmp_path / "a")))
    torch.testing.assert_close(again, expected["a"])
    write_merged(tmp_path / "merged", SUM, {name: tmp_path / name for name in "ab"}, **QUIET)
    merged, *heads = (read_back(tmp_path / name)["lm_head.weight"] for name in ("merged", "a", "b"))
    torch.testing.assert_close(merged, sum(heads) / 2)
    rewrite_tensors(tmp_path / "b", lambda tensors: {name: x for name, x in tensors.items() if "embed" not in name})
    with pytest.raises(UserError, match=r"lacks tensor 'model.embed_tokens.weight'; embeddings are saved whole where"):
        write_merged(tmp_path / "more", SUM, {name: tmp_path / name for name in "ab"}, **QUIET)


def test_two_copies_of_an_embedding_must_hold_the_same(tmp_path: Path) -> None:
    name = f"{PREFIX}lm_head"
    saved = {f"{name}.weight": torch.ones(2, 7), f"{name}.modules_to_save.weight": torch.zeros(2, 7)}
    folder = write_expert(tmp_path / "a", random_experts("a")["a"], saved, modules_to_save=["lm_head"])
    with pytest.raises(
        UserError, match=r"lm_head.modules_to_save.weight and .*lm_head.weight are two spellings of one"
    ):
        open_adapter(folder)


@pytest.mark.parametrize("config", [["embed_tokens", "lm_head"], ["embed_tokens"], "tied"], ids=str)
def test_the_embeddings_of_a_tied_head_are_merged_as_they_were_saved(config: Any, tmp_path: Path) -> None:
    saved = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True} if config == "tied" else {}
    saved = saved or {"modules_to_save": config}
    expected = save_random(tmp_path / "expert", make_llama(tied=True), target_modules=["q_proj"], **saved)
    merged = PeftModel.from_pretrained(make_llama(tied=True), merge_one(tmp_path / "expert"))
    torch.testing.assert_close(logits(merged), expected)


@pytest.mark.parametrize("config", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}], ids=str)
def test_no_delta_changes_a_weight_that_is_two(config: dict[str, Any], tmp_path: Path) -> None:
    make_llama(tied=True).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    save_random(tmp_path / "expert", model, **{"target_modules": ["q_proj"], **config})
    with pytest.raises(UserError, match="is one weight with another in the base"):
        method = read_method("average", space="delta", out__format="delta")
        merge_folders([tmp_path / "expert"], method, tmp_path / "merged", **QUIET)


@pytest.mark.parametrize("name", ["norm", "layers.0.input_layernorm", "h.0.ln_1", "wte", "embed_out"])
def test_whole_norms_and_embeddings_are_averaged_though_the_config_does_not_list_them(name, tmp_path: Path) -> None:
    for value, (expert, pairs) in enumerate(random_experts("ab").items()):
        write_expert(tmp_path / expert, pairs, {f"{PREFIX}{name}.weight": torch.full((3,), float(value))})
    write_merged(tmp_path / "merged", SUM, {expert: tmp_path / expert for expert in "ab"}, **QUIET)
    assert torch.equal(read_back(tmp_path / "merged")[f"{name}.weight"], torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("layers.0.q.lora_A.weight", (0,)), ("embed_tokens.weight", (0, 6)), ("embed_tokens.weight", (0,)), (None, ())],
)
def test_what_zero_3_leaves_empty_is_refused(name: str | None, shape: tuple[int, ...], tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "a", random_experts("a")["a"], modules_to_save=["embed_tokens"])
    empty = {f"{PREFIX}{name}": torch.empty(shape)}
    rewrite_tensors(folder, lambda tensors: tensors | empty if name else {})
    told = rf"{name} is empty, of shape {re.escape(str(list(shape)))}" if name else "holds no tensors"
    with pytest.raises(UserError, match=rf"{told}; DeepSpeed ZeRO-3 leaves that behind") as refused:
        open_adapter(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("known_by", ["the name of the base", "the config of the base", "the config beside it"])
def test_a_checkpoint_of_llavas_own_trainer_lacks_its_projector(known_by: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = "liuhaotian/llava-v1.5-7b" if known_by == "the name of the base" else str(tmp_path / "base")
    folder = write_named(tmp_path / "a", BEFORE["qwen2_5_vl"], base_model_name_or_path=base)
    beside = folder if known_by == "the config beside it" else tmp_path / "base"
    (beside / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "clip"}))
    with pytest.raises(UserError, match="a checkpoint of LLaVA's own trainer, without the projector"):
        open_adapter(folder)


# --- where it lies --------------------------------------------------------------------------------------------------


def test_the_adapters_of_a_folder_too_high_are_offered(tmp_path: Path) -> None:
    for step in (9, 10):
        write_expert(tmp_path / f"checkpoint-{step}", random_experts("a")["a"])
    told = (
        f"{tmp_path} is no adapter folder, it has no {CONFIG}; there are adapters one level deeper, give one of them: "
    )
    with pytest.raises(UserError, match=re.escape(f"{told}checkpoint-9, checkpoint-10")):
        merge_folders([tmp_path], SUM, tmp_path / "merged", **QUIET)


def test_two_experts_of_one_folder_name_are_told_by_their_paths(tmp_path: Path) -> None:
    folders = [write_expert(tmp_path / name / "checkpoint-20", random_experts("a")["a"]) for name in "ab"]
    with pytest.raises(UserError, match=re.escape(f"{folders[0]} and {folders[1]}; name them as name:folder")):
        merge_folders(folders, SUM, tmp_path / "merged", **QUIET)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, ""])
def test_a_broken_link_is_told_as_such(file: str, tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "a", random_experts("a")["a"])
    link = folder / file if file else tmp_path / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"a link to {tmp_path}/gone, which is not there"):
        merge_folders([folder if file else link], SUM, tmp_path / "merged", **QUIET)


@pytest.mark.parametrize("file", [WEIGHTS, "adapter_model.bin"])
def test_a_pointer_of_git_lfs_is_told_as_such(file: str, tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "a", random_experts("a")["a"])
    (folder / WEIGHTS).unlink()
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    with pytest.raises(UserError, match=rf"expert 'a': .*{file} .* git-lfs left a pointer in its place"):
        open_adapter(folder)


# --- the encoders of CLIP -------------------------------------------------------------------------------------------

IN_CLIP = tuple(f"vision_model.encoder.layers.0.self_attn.{name}_proj" for name in ("out", "q"))
BY_ITSELF = tuple(name.removeprefix("vision_model.") for name in IN_CLIP)
CLIP_BASE = "openai/clip-vit-base-patch32"


def of_class(name: str) -> dict[str, Any]:
    """What peft notes of a model for which there is no task type."""
    return {"auto_mapping": {"base_model_class": name, "parent_library": "transformers.models.clip.modeling_clip"}}


def write_clip_expert(folder: Path, modules: tuple[str, ...], bin_file: bool = False, **config: Any) -> Path:
    """An expert of width 8 of CLIP; which numbers it holds, the name of its folder says."""
    draw = torch.Generator().manual_seed(ord(folder.name[0]))
    pairs = {m: LoraPair(torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw)) for m in modules}
    return write_expert(folder, pairs, bin_file=bin_file, base_model_name_or_path=CLIP_BASE, **config)


@pytest.mark.parametrize("known", [True, False])
def test_experts_of_an_image_encoder_by_itself_merge_with_those_of_the_whole_clip(known: bool, tmp_path: Path) -> None:
    config = of_class("CLIPVisionTransformer") if known else {}
    experts = {"a": write_clip_expert(tmp_path / "a", BY_ITSELF, True, **config)}
    experts["b"] = write_clip_expert(tmp_path / "b", IN_CLIP)
    whole = {"a": write_clip_expert(tmp_path / "whole" / "a", IN_CLIP), "b": experts["b"]}
    for name, folders in (("merged", experts), ("expected", whole)):
        write_merged(tmp_path / name, SUM, folders, **QUIET)
    merged, expected = read_back(tmp_path / "merged"), read_back(tmp_path / "expected")
    assert merged.keys() == expected.keys() and all(torch.equal(merged[name], expected[name]) for name in merged)


def test_experts_of_an_image_encoder_by_itself_change_the_images_of_a_whole_clip_only(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    images = {**size, "image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=images, projection_dim=4)).eval()
    inputs = {"input_ids": torch.tensor([[1, 5, 2]]), "pixel_values": torch.ones(1, 3, 8, 8)}
    before = model(**inputs)
    of_images = of_class("CLIPVisionTransformer")
    experts = {name: write_clip_expert(tmp_path / name, BY_ITSELF, True, **of_images) for name in "ab"}
    write_merged(tmp_path / "merged", SUM, experts, **QUIET)
    after = PeftModel.from_pretrained(model, tmp_path / "merged")(**inputs)
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert not torch.allclose(before.image_embeds, after.image_embeds, atol=1e-3)


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextTransformer"])
def test_names_of_a_text_encoder_by_itself_stay(name: str, tmp_path: Path) -> None:
    text = write_clip_expert(tmp_path / "a", BY_ITSELF, **of_class(name))
    (a, _), _ = open_adapters({"a": text, "b": write_clip_expert(tmp_path / "b", IN_CLIP)})
    assert a.modules == BY_ITSELF and not a.renamed


def test_names_of_an_encoder_stay_where_nothing_says_whose_it_is(tmp_path: Path) -> None:
    assert open_adapter(write_clip_expert(tmp_path / "a", BY_ITSELF)).modules == BY_ITSELF
