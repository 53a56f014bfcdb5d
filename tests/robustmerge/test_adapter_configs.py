"""Configs of adapters from elsewhere: what is refused of them, what patterns cost, what is written in their place."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from robustmerge.formats import patterns
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import CONFIG, config_for
from robustmerge.formats.patterns import find_first_matches
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import Method, read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, load_with_peft, random_experts, save_expert, write_expert

SUM = Method("sum", strength=1.0)
HUGE = 10**400


def write_config(folder: Path, **values: Any) -> Path:
    """An adapter of two modules, layers.0.q and layers.1.q, of rank 4."""
    return write_expert(folder, random_experts("a")["a"], **values)


# --- types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values", "allowed"),
    [
        ("r", [4.7, "4", True, None, 0, -1, float("inf"), HUGE, [4]], "a whole number from 1 to 1000000"),
        ("lora_alpha", ["8", True, None, float("nan"), float("inf"), HUGE, {}], "a finite number"),
        ("rank_pattern", [["q"], "q", 5], "a mapping"),
        ("alpha_pattern", [["q"], "q", 5], "a mapping"),
        ("target_modules", [5, True, ["q", 5], [None, "q"], [""], {"q": 1}], "a text or a list of texts"),
        ("exclude_modules", [7, ["q", 5]], "a text or a list of texts"),
        ("layers_pattern", [7, [None]], "a text or a list of texts"),
        ("layers_to_transform", ["1", [1, "2"], 1.5, [True]], "a whole number or a list of them"),
        ("modules_to_save", ["head", [""], [5], ["a(b"], [".*"], ["x"] * 1000], "a list of at most 400 names"),
        ("base_model_name_or_path", [5, ["x"], {}, 1.5, "x" * 300, "x/" * 600, "a\nb", "a\0b"], "one line of text"),
        ("revision", [5, ["main"], "\x1b[2J"], "one line of text"),
        ("task_type", [5, ["CAUSAL_LM"], {}, "causal"], "one of SEQ_CLS, "),
        ("auto_mapping", [5, ["x"], "x"], "a mapping"),
        ("bias", [["none"], "some", 1], "none, all or lora_only"),
        ("peft_type", ["IA3", None, 5, ["LORA"]], "LORA"),
        *((flag, ["false", 0, []], "true or false") for flag in ("use_dora", "lora_bias", "use_rslora",
                                                                "fan_in_fan_out", "ensure_weight_tying")),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_with_its_key_and_what_is_allowed(
    key: str, values: list[Any], allowed: str, tmp_path: Path
) -> None:
    for n, value in enumerate(values):
        folder = write_config(tmp_path / str(n), **{key: value})
        with pytest.raises(UserError) as refused:
            open_adapter(folder)
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"expert '{n}': {folder / CONFIG}: {key} must be {allowed}")
        assert len(line) < 600 and line.isprintable()


def test_all_wrong_values_are_told_at_once_and_long_ones_in_short(tmp_path: Path) -> None:
    wrong = {"r": "4", "lora_alpha": "x" * 10**5, "rank_pattern": {"q": 0, "v": HUGE}, "task_type": ["\x1b[2J"]}
    with pytest.raises(UserError) as refused:
        open_adapter(write_config(tmp_path / "a", **wrong))
    lines = str(refused.value).splitlines()
    assert [line.split(f"{CONFIG}: ")[1].partition(" must")[0] for line in lines] == [
        "r", "lora_alpha", "rank_pattern: the value of 'q'", "rank_pattern: the value of 'v'", "task_type",
    ]  # fmt: skip
    assert "\x1b" not in lines[-1] and len(str(refused.value)) < 1900
    unknown = {f"\x1b[3{n}mnew": "y" * 10**5 for n in range(30)}
    with pytest.raises(UserError, match=r"\\x1b\[310mnew='yyy.*cannot be merged here") as refused:
        open_adapter(write_config(tmp_path / "b", **unknown))
    assert str(refused.value).endswith("(and 25 more)") and len(str(refused.value).encode()) < 2000


def test_what_other_programs_write_is_merged(tmp_path: Path) -> None:
    old = {"enable_lora": [True, False], "merge_weights": True, "fan_in_fan_out": None, "bias": None}  # peft 0.1
    unsloth = {"auto_mapping": {"base_model_class": "Llama", "unsloth_fixed": True}, "revision": "unsloth"}
    for name, values in {"old": old, "unsloth": unsloth, "whole": {"r": 4.0, "peft_type": "lora"}}.items():
        write_merged(tmp_path / f"of_{name}", SUM, {name: write_config(tmp_path / name, **values)}, **QUIET)
    assert json.loads((tmp_path / "of_unsloth" / CONFIG).read_text())["auto_mapping"] == unsloth["auto_mapping"]


# --- patterns ----------------------------------------------------------------------------------------------------

MODULES = [f"model.layers.{n}.self_attn.{name}_proj" for n in (0, 1, 10) for name in "qv"]
ONES = {
    "q_proj": MODULES[::2],
    r"^model\.layers\.1\.self_attn\.q_proj": MODULES[2:3],
    "model.layers.0.self_attn.q_proj": MODULES[:1],
    "layers_0.self": [],
    r"^model\.layers\.(0|1)\.self_attn\.(q|v)_proj": MODULES[:4],
    r".*layers.1.*\.(q_proj|v_proj)": MODULES[2:],
    r"1.self_attn\.(?:q_proj|v_proj)$": MODULES[2:4],
    "(?:model.)?layers.10.*_proj": MODULES[4:],
}


@pytest.mark.parametrize("key", ONES)
def test_a_pattern_gives_its_rank_to_the_modules_that_peft_gives_it(key: str) -> None:
    from peft.utils.other import get_pattern_key

    matches = dict(zip(MODULES, find_first_matches(["none", key], MODULES), strict=True))
    assert [module for module, match in matches.items() if match == key] == ONES[key]
    assert ONES[key] == [module for module in MODULES if get_pattern_key([key], module) == key]


def test_the_first_of_several_patterns_counts() -> None:
    keys = [r"\d\.self_attn\.q_proj", "q_proj", r"^model\.layers\.0\.self_attn\.v_proj", ".*"]
    assert find_first_matches(keys, MODULES[:2]) == [keys[0], keys[2]]
    assert find_first_matches(keys[1:], MODULES[:3]) == [keys[1], keys[2], keys[1]]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(([a-z0-9_.])+)+!", "rank_pattern: its regular expressions take more than 0.2 s; write names of modules"),
        ("(a|a)" * 60 + "!", "rank_pattern: its regular expressions take more than 0.2 s"),
        ("(?i)q_proj", r"rank_pattern: '\(\?i\)q_proj' is no regular expression: global flags not at the start"),
        ("q{99999999999}", r"'q\{99999999999\}' is no regular expression: the repetition number is too large"),
        ("(" * 5000, "is no regular expression: "),
    ],
)
def test_a_pattern_that_does_not_end_or_is_none_is_refused(
    pattern: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    pairs = {"layers." + "a" * 60: next(iter(random_experts("a")["a"].values()))}
    with pytest.raises(UserError, match=reason):
        open_adapter(write_expert(tmp_path / "a", pairs, rank_pattern={pattern: 4}))


def test_thousands_of_names_in_a_pattern_are_looked_up() -> None:
    modules = [f"model.layers.{n}.q_proj" for n in range(20_000)]
    keys = [f"^{module}".replace(".", r"\.") for module in modules]
    started = time.monotonic()
    assert find_first_matches(keys, modules) == keys
    assert time.monotonic() - started < 3


# --- the config that is written --------------------------------------------------------------------------------------

RANKS = {"model.layers.0.attn.q": 4, "model.layers.1.attn.q": 4}
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:k|v|q).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:k|v|q)))"
)


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q", "v"]},
        {"target_modules": UNSLOTH},
        {"target_modules": r"^(language_model|model)(?=\.).*\.(q|v)$"},
        {"target_modules": ["q"], "exclude_modules": ["v"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": ["q"], "layers_to_transform": [0, 1]},
    ],
)
def test_targets_by_which_peft_finds_every_module_are_written_as_they_are(targets: dict[str, Any]) -> None:
    assert targets.items() <= config_for(RANKS, targets).items()


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {"target_modules": []},
        {"target_modules": ""},
        {"target_modules": "all-linear"},
        {"target_modules": ["v"]},
        {"target_modules": "q("},
        {"target_modules": r"model\.layers\.0\..*"},
        {"target_modules": ["q"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": ["q"], "exclude_modules": ["attn.q"]},
        {"target_modules": ["q"], "layers_to_transform": 1},
        {"target_modules": ["q"], "layers_to_transform": [0, 1], "layers_pattern": "h"},
        {"target_modules": ["q"], "layers_pattern": "layers"},
        {"target_modules": ".*q", "layers_to_transform": []},
    ],
)
def test_targets_by_which_peft_does_not_are_replaced_by_the_names_of_the_modules(targets: dict[str, Any]) -> None:
    written = config_for(RANKS, targets)
    assert written["target_modules"] == sorted(RANKS)
    assert (written["exclude_modules"], written["layers_to_transform"], written["layers_pattern"]) == (None,) * 3


def test_targets_that_do_not_end_are_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    assert config_for(RANKS, {"target_modules": "(.|..)" * 60 + "!"})["target_modules"] == sorted(RANKS)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")
def test_experts_that_spell_the_same_modules_differently_are_merged(tmp_path: Path) -> None:
    full = [f"layers.{n}.{name}" for n in (0, 1) for name in "qv"]
    spelled = {
        "a": {"target_modules": ["q", "v"]}, "b": {"target_modules": r"layers\.\d+\.(q|v)"},
        "c": {"target_modules": full}, "d": {"target_modules": [*"qv", "projector"], "exclude_modules": ["projector"]},
    }  # fmt: skip
    for name, config in spelled.items():
        expected = save_expert(tmp_path / name, **config)
    write_merged(tmp_path / "merged", SUM, {"d": tmp_path / "d"}, **QUIET)
    torch.testing.assert_close(load_with_peft(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    folders = {name: tmp_path / name for name in spelled}
    write_merged(tmp_path / "together", read_method("average", space="delta"), folders, **QUIET)
    torch.testing.assert_close(load_with_peft(tmp_path / "together"), expected, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "together" / CONFIG).read_text())["target_modules"] == full


def test_weights_that_are_trained_as_one_stay_tied(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}.weight": torch.ones(3, 2) for name in ("embed_tokens", "lm_head")}
    pairs = random_experts("a")["a"]
    tied = write_expert(tmp_path / "a", pairs, tensors, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    write_merged(tmp_path / "merged", SUM, {"a": tied}, **QUIET)
    assert json.loads((tmp_path / "merged" / CONFIG).read_text())["ensure_weight_tying"] is True
    free = write_expert(tmp_path / "b", pairs, tensors, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(UserError, match="expert 'b' has ensure_weight_tying none, expert 'a' True"):
        write_merged(tmp_path / "both", SUM, {"a": tied, "b": free}, **QUIET)


def test_lora_on_a_module_that_is_saved_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="module 'layers.0.q' has LoRA and is in modules_to_save, of which peft"):
        open_adapter(write_config(tmp_path / "a", modules_to_save=["layers.0"]))


# --- numbers and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["robustmerge", "robustmerge_eq5", "ties", "knots_ties", "dc_merge", "pcb"])
def test_updates_too_large_for_float32_are_refused_before_anything_is_published(method: str, tmp_path: Path) -> None:
    folders = {
        name: write_expert(tmp_path / name, {m: LoraPair(p.A * 1e25, p.B * 1e25) for m, p in pairs.items()})
        for name, pairs in random_experts("ab").items()
    }
    with pytest.raises(UserError, match="expert 'a', module 'layers.0.q': its update, B A with alpha/r, is too large"):
        merge_folders(folders, read_method(method), tmp_path / "merged", **QUIET)
    assert not (tmp_path / "merged").exists()


def test_a_norm_is_a_number_where_the_update_is_one(tmp_path: Path) -> None:
    pairs = {m: LoraPair(p.A * 1e12, p.B * 1e12) for m, p in random_experts("a")["a"].items()}
    record = write_merged(tmp_path / "out", SUM, {"a": write_expert(tmp_path / "a", pairs)}, **QUIET)
    exact = sum(float((p.B.double() @ p.A.double()).square().sum()) for p in pairs.values()) ** 0.5
    assert record["norm"] == pytest.approx(exact, rel=1e-5) == record["expert_norms"]["a"]
    large = write_config(tmp_path / "b", lora_alpha=1e300)
    with pytest.raises(UserError, match="row 0 of B holds NaN or infinity once multiplied by alpha/r"):
        write_merged(tmp_path / "none", SUM, {"b": large}, **QUIET)


def test_no_name_breaks_a_line_of_the_card(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "a", base_model_name_or_path="org/`x`")
    write_merged(tmp_path / "out", SUM, {"a\n---\n\x1b[2J": folder}, **QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Experts: a\\n---\\n\\x1b[2J.\nBase model: `org/'x'`.\n" in card
