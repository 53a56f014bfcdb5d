"""Merging inside a live PeftModel is merging the adapters' folders and loading the result, on a tiny real Llama."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from robustmerge.live import merge_into
from robustmerge.merging import merge_folders
from robustmerge.method import AnyMethod, read_method
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOKENS = torch.arange(12).reshape(2, 6)
NAMES = ("ocr", "rec", "vqa")
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
ALPHAS = [PLAIN, {**PLAIN, "lora_alpha": 3}, {**PLAIN, "use_rslora": True}]
RANKS = [{**PLAIN, "rank_pattern": {"0.self_attn.q_proj": 2}}, {**PLAIN, "r": 3, "alpha_pattern": {"v_proj": 5}}, PLAIN]


def build_model(configs: list[dict[str, Any]], dtype: torch.dtype = torch.float32, **options: bool) -> PeftModel:
    """A Llama with one random adapter a config, of the names in NAMES."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, **sizes)).to(dtype)
    model = get_peft_model(base, LoraConfig(**configs[0]), adapter_name=NAMES[0], **options)
    for name, config in zip(NAMES[1:], configs[1:], strict=False):
        model.add_adapter(name, LoraConfig(**config), **options)
    for name, parameter in model.named_parameters():
        if any(f".{adapter}" in name for adapter in NAMES):
            nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=0.3)
    return model.eval()


def logits(model: PeftModel, adapter: str) -> torch.Tensor:
    model.set_adapter(adapter)
    with torch.no_grad():
        return model(TOKENS).logits


def merge_both(model: PeftModel, method: AnyMethod, folder: Path) -> None:
    """Merge all adapters in the model as `merged`, and their folders, loaded as `loaded`."""
    names = list(model.peft_config)
    model.save_pretrained(folder)
    merge_folders({name: folder / name for name in names}, method, folder / "merged", **QUIET)
    merge_into(model, names, method, **QUIET)
    model.load_adapter(folder / "merged", adapter_name="loaded")


def assert_same(model: PeftModel) -> None:
    live, loaded = (get_peft_model_state_dict(model, adapter_name=name) for name in ("merged", "loaded"))
    assert live.keys() == loaded.keys()
    assert all(torch.equal(live[name], loaded[name]) for name in live)
    configs = [model.peft_config[name].to_dict() for name in ("merged", "loaded")]
    assert configs[0] | {"auto_mapping": None} == configs[1] | {"auto_mapping": None}
    assert torch.equal(logits(model, "merged"), logits(model, "loaded"))


METHODS = {
    "factors": read_method("ties"),
    "robustmerge": read_method("robustmerge", prune__density=0.6, weights={"rec": 0.5}),
    "random": read_method("dare", seed=3),
    "sum of updates": read_method("task_arithmetic", space="delta"),
    "delta": read_method("ties", space="delta", out__rank=3),
    "knots": read_method("knots_ties"),
    "core": read_method("ties", space="core"),
    "function": read_method("tsv_m"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_in_the_model_is_the_merge_of_the_folders(method: str, tmp_path: Path) -> None:
    model = build_model(ALPHAS)
    merge_both(model, METHODS[method], tmp_path)
    assert_same(model)


@pytest.mark.parametrize(
    "configs",
    [
        RANKS,
        [{**PLAIN, "modules_to_save": ["lm_head", "embed_tokens"]}] * 2,
        [{**PLAIN, "use_dora": True}] * 2,
        [{**PLAIN, "lora_bias": True, "target_modules": "all-linear"}] * 2,
        [PLAIN, {**PLAIN, "target_modules": ["q_proj", "k_proj"]}],
    ],
    ids=["rank_pattern", "modules_to_save", "dora", "lora_bias", "other modules"],
)
def test_whatever_adapters_hold_is_merged_as_from_folders(configs: list[dict[str, Any]], tmp_path: Path) -> None:
    model = build_model(configs)
    merge_both(model, METHODS["knots"], tmp_path)
    assert_same(model)
    assert not torch.equal(logits(model, "merged"), logits(model, NAMES[0]))


def test_nothing_else_of_the_model_changes() -> None:
    model = build_model(ALPHAS).train()
    model.set_adapter("rec")
    before = {name: (x.clone(), x.requires_grad) for name, x in model.named_parameters()}
    state = torch.get_rng_state()
    merge_into(model, NAMES, "ties", **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.active_adapter, model.training) == ("rec", True)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], x) and after[name].requires_grad == grad for name, (x, grad) in before.items())
    assert not any(x.requires_grad for name, x in after.items() if name not in before)


@pytest.mark.parametrize(
    ("autocast", "dtype", "expected"),
    [(True, None, "float32"), (False, None, "bfloat16"), (True, "float16", "float16"), (False, "float32", "float32")],
)
def test_the_dtype_is_that_of_the_experts_unless_another_is_asked_for(
    autocast: bool, dtype: str | None, expected: str, tmp_path: Path
) -> None:
    model = build_model(ALPHAS, torch.bfloat16, autocast_adapter_dtype=autocast)
    merge_into(model, NAMES, "average", dtype=dtype, **QUIET)
    merged = get_peft_model_state_dict(model, adapter_name="merged")
    assert {x.dtype for x in merged.values()} == {getattr(torch, expected)}
    model.save_pretrained(tmp_path)
    method = read_method("average", out__dtype=expected)
    merge_folders({name: tmp_path / name for name in NAMES}, method, tmp_path / "folder", **QUIET)
    model.load_adapter(tmp_path / "folder", adapter_name="loaded", autocast_adapter_dtype=False)
    loaded = get_peft_model_state_dict(model, adapter_name="loaded")
    assert all(torch.equal(merged[name].bfloat16(), x) for name, x in loaded.items())
    assert torch.isfinite(logits(model, "merged")).all()


def test_weights_and_seed_take_the_place_of_the_methods_own() -> None:
    model = build_model(ALPHAS)
    method = read_method("dare", seed=5, weights={"vqa": 2.0})
    merge_into(model, NAMES, "dare", "one", {"vqa": 2.0}, 5, **QUIET)
    merge_into(model, NAMES[::-1], method, "two", **QUIET)
    assert torch.equal(logits(model, "one"), logits(model, "two"))


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configs", "method"),
    [
        (RANKS, read_method("ties")),
        ([PLAIN, {**PLAIN, "target_modules": ["q_proj"]}], read_method("ties", targets="strict")),
        ([PLAIN, {**PLAIN, "base_model_name_or_path": "another"}], read_method("ties")),
        ([PLAIN, {**PLAIN, "use_dora": True}], read_method("ties")),
        ([{**PLAIN, "trainable_token_indices": {"embed_tokens": [1]}}] * 2, read_method("ties")),
        ([{**PLAIN, "init_lora_weights": "olora"}] * 2, read_method("ties")),
        ([PLAIN], read_method("ties", weights={"vqe": 2.0})),
        (ALPHAS, read_method("robustmerge", prune__density=0.01)),
    ],
    ids=["ranks", "modules", "base", "dora", "tokens", "init", "weights", "empty rows"],
)
def test_what_folders_are_refused_for_is_refused_here(
    configs: list[dict[str, Any]], method: AnyMethod, tmp_path: Path
) -> None:
    model = build_model(configs)
    names, before = list(model.peft_config), [name for name, _ in model.named_parameters()]
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError) as of_folders:
        merge_folders({name: tmp_path / name for name in names}, method, tmp_path / "merged", **QUIET)
    with pytest.raises(UserError) as live:
        merge_into(model, names, method, **QUIET)
    expected = str(of_folders.value)
    for name in names:
        expected = expected.replace(str(tmp_path / name), "the model")
    assert str(live.value) == expected
    assert ([name for name, _ in model.named_parameters()], list(model.peft_config)) == (before, names)


def test_mistakes_in_the_call_are_told() -> None:
    model = build_model(ALPHAS)
    wrong: list[tuple[tuple, dict[str, Any], str]] = [
        ((["ocr", "rex"], "ties"), {}, "no adapter 'rex'.*rec"),
        ((["ocr", "ocr"], "ties"), {}, "'ocr' is named twice"),
        (("ocr", "ties"), {}, "must be a list of names"),
        ((NAMES, "ties", "rec"), {}, "has an adapter 'rec' already"),
        ((NAMES, "ties", "a.b"), {}, "no adapter named 'a.b'"),
        ((NAMES, "tsv_m"), {"seed": 1}, "tsv_m is a function, which knows no seed"),
        ((NAMES, "ties"), {"dtype": "float8"}, "unknown dtype 'float8'"),
        ((NAMES, read_method("ties", space="delta")), {}, "ties gives no adapter.*full rank.*out__rank=16"),
        ((NAMES, read_method("ties", out__format="delta")), {}, "its out.format is delta"),
        (
            (NAMES, read_method("ties", strength=1e6)),
            {"dtype": "float16"},
            "do not fit torch.float16; .*dtype='float32'",
        ),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(UserError, match=message):
            merge_into(model, *arguments, **options, **QUIET)
    with pytest.raises(UserError, match="must be a peft.PeftModel, got LlamaForCausalLM"):
        merge_into(model.get_base_model(), NAMES, "ties")
    with pytest.raises(UserError, match="only one such adapter"):
        merge_into(build_model([{**PLAIN, "bias": "all"}]), NAMES[:1], "ties")


def test_an_adapter_named_as_a_part_of_a_module_takes_nothing_from_another() -> None:
    model = build_model(ALPHAS[:1])
    model.add_adapter("self_attn", LoraConfig(**PLAIN))
    with pytest.raises(UserError, match="'ocr' .*not all of its weights: the adapter 'self_attn' is named as a part"):
        merge_into(model, ["ocr", "self_attn"], "ties", **QUIET)


def test_the_library_imports_peft_only_where_there_is_a_model_of_it() -> None:
    for file in (REPOSITORY / "robustmerge").rglob("*.py"):
        imported = [node for node in ast.parse(file.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [node for node in imported if re.search(r"^(from|import) peft\b", ast.unparse(node))], file
