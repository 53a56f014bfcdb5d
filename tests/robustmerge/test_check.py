"""`robustmerge check`: what a merge moves in a real model is said, and so is what does not arrive there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from robustmerge.analysis.effect import Effect, draw_tokens, load_model, measure_effects, read_logits
from robustmerge.cli.program import main
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from tests.merge_cases import QUIET, rewrite_tensors
from tests.robustmerge.test_delta_sources import save_llava_expert
from tests.tiny_model import write_base

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 64}


def build(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, one of fewer layers, two experts, their merge, and an expert whose B is zero."""
    root = tmp_path_factory.mktemp("check")
    build().save_pretrained(root / "base")
    build(layers=1).save_pretrained(root / "shorter")
    for seed, name in enumerate(("one", "two", "zero")):
        model = build()
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=name == "zero")
        get_peft_model(model, config).save_pretrained(root / name)
    merge_folders([root / "one", root / "two"], read_method("average", space="delta"), root / "merged", **QUIET)
    return root


@pytest.fixture(autouse=True)
def folder(ground: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ground)
    return ground


def end(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    return ended.value.code


def measure(base: str, *adapters: str) -> dict[str, Effect]:
    return dict(measure_effects(Path(base), {name: Path(name) for name in adapters}))


def test_what_a_merge_moves_is_said_in_a_line_each(capsys) -> None:
    main(["check", "base", "one", "two", "merged"])
    *effects, first, second = capsys.readouterr().out.splitlines()
    for name, line in zip(("one", "two", "merged"), effects, strict=True):
        assert line.startswith(f"{name}: moves the logits of base by 0.")
        assert "(relative, mean over 8 sequences of 32 tokens), changes " in line
        assert line.endswith(" % of the likeliest next tokens; 4 of 4 adapted modules have an update other than zero")
    assert first.startswith("one: changes the logits with cosine 0.") and first.endswith(" to merged")
    assert second.startswith("two: changes the logits with cosine 0.")


def test_the_effect_is_that_of_the_weights(folder: Path) -> None:
    """The full model, which needs no peft, moves as its adapter does."""
    method = read_method("average", out__format="model", out__base="base")
    merge_folders(["one"], method, folder / "full", **QUIET)
    full, base = (load_model(Path(name), "cpu") for name in ("full", "base"))
    tokens = draw_tokens(base)
    one, zero = measure("base", "one", "zero").values()
    torch.testing.assert_close(one.change, read_logits(full, tokens) - read_logits(base, tokens), rtol=0, atol=1e-5)
    assert (zero.moved, zero.turned, zero.active, zero.empty) == (0, 0, 0, 4)
    assert one.cosine(one) == pytest.approx(1, abs=1e-5) and one.cosine(zero) == 0


def test_an_update_of_zero_moves_nothing_and_the_status_is_1(capsys) -> None:
    assert end("base", "zero") == 1
    assert capsys.readouterr().out == "zero: moves nothing in base: B A is 0 in 4 of its 4 modules\n"


def test_modules_that_the_base_lacks_are_named_and_the_status_is_1(tmp_path: Path, folder: Path, capsys) -> None:
    assert end("shorter", "one") == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "; 2 of 4 adapted modules have an update other than zero" in first
    places = "'model.layers.1.mlp.up_proj', 'model.layers.1.self_attn.q_proj'"
    assert second == f"one: 2 of 4 adapted modules find no place in shorter: {places}"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (other / name).write_bytes((folder / "one" / name).read_bytes())
    rewrite_tensors(other, lambda tensors: {name.replace(".layers.", ".blocks."): x for name, x in tensors.items()})
    assert end("base", str(other)) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{other}: moves nothing in base"
    assert "4 of 4 adapted modules find no place in base: 'model.blocks.0.mlp.up_proj', " in second


def test_a_llava_reads_text_alone(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    effect = measure(str(base), str(save_llava_expert(tmp_path / "expert", base))).popitem()[1]
    assert effect.is_whole and effect.active == effect.modules


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "one"], "the base model cannot be found: there is no folder nowhere"),
        (["base", "nowhere"], "there is no folder nowhere"),
        (["one", "one"], "one is no model folder: it has neither model.safetensors nor"),
        (["base", "one", "--device", "cuda:77"], "there is no device 'cuda:77' here: "),
    ],
)
def test_what_cannot_be_loaded_is_one_message(capsys, words: list[str], message: str) -> None:
    assert end(*words) == 2
    assert message in capsys.readouterr().err


def test_a_base_of_no_known_class_is_refused(tmp_path: Path, folder: Path, capsys) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "base" / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Mine"]}))
    assert end(str(tmp_path), "one") == 2
    assert "architectures must name a model of transformers, got ['Mine']" in capsys.readouterr().err


def test_without_peft_the_extra_to_install_is_named(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert end("base", "one") == 2
    printed = capsys.readouterr().err
    assert "needs transformers and peft, and peft cannot be imported: in a checkout pip install '.[check]'" in printed
