"""What adapter folders hold, in every spelling that peft has written, and what is refused of them.

The property tests are in test_adapter_laws.py, those of the Hub in test_hub.py, and
which adapters fit together in test_compatibility.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.adapter_writer import AdapterWriter
from robustmerge.merging import write_merged
from robustmerge.method import Method
from robustmerge.stage.settings import UserError
from tests.merge_cases import (
    QUIET,
    TinyConv1D,
    load_with_peft,
    random_experts,
    read_back,
    rewrite_tensors,
    save_expert,
    write_expert,
)

SUM = Method("sum", strength=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes lora_B's bias for a damaged matrix


# --- what is read -------------------------------------------------------------------------------------------------


def test_a_dora_magnitude_and_a_scaled_lora_bias_are_read(tmp_path: Path) -> None:
    save_expert(tmp_path / "dora", use_dora=True)
    save_expert(tmp_path / "biased", lora_bias=True, use_rslora=True, r=4)
    dora, biased = open_adapter(tmp_path / "dora"), open_adapter(tmp_path / "biased")
    stored = read_back(tmp_path / "dora")["layers.0.q.lora_magnitude_vector"]
    assert torch.equal(dora.magnitude("layers.0.q"), stored)
    assert (dora.is_dora, dora.has_lora_bias, dora.bias("layers.0.q")) == (True, False, None)
    stored = read_back(tmp_path / "biased")["layers.0.q.lora_B.bias"]
    assert torch.equal(biased.bias("layers.0.q"), stored * 6 / 4**0.5)
    assert (biased.is_dora, biased.has_lora_bias, biased.magnitude("layers.0.q")) == (False, True, None)


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"modules_to_save": ["projector"]}, {r"projector\.": "projector.modules_to_save."}),
        ({"modules_to_save": ["projector"]}, {r"projector\.": "projector.modules_to_save.default."}),
        ({}, {r"(lora_[AB])\.": r"\1.default."}),
        ({"use_dora": True}, {"lora_magnitude_vector": "lora_magnitude_vector.weight"}),
        ({"use_dora": True}, {"lora_magnitude_vector": "lora_magnitude_vector.default.weight"}),
        ({"bias": "lora_only"}, {r"\.base_layer\.bias": ".bias"}),
        ({"bias": "all"}, {r"\.base_layer\.bias": ".bias"}),
    ],
    ids=str,
)
def test_names_of_older_versions_of_peft_are_read_and_written_as_today(
    config: dict, old: dict[str, str], tmp_path: Path
) -> None:
    expected = save_expert(tmp_path / "expert", **config)
    for pattern, spelling in old.items():
        rewrite_tensors(
            tmp_path / "expert",
            lambda tensors, p=pattern, s=spelling: {re.sub(p, s, name): x for name, x in tensors.items()},
        )
    write_merged(tmp_path / "merged", SUM, {"expert": tmp_path / "expert"}, **QUIET)
    torch.testing.assert_close(load_with_peft(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)


def test_the_head_of_a_classifier_is_saved_whether_or_not_the_config_lists_it(tmp_path: Path) -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 7)}
    folder = write_expert(tmp_path / "a", random_experts("a")["a"], head, task_type="SEQ_CLS")
    assert open_adapter(folder).extras == ("score.weight",)
    with pytest.raises(UserError, match="tensor base_model.model.score.weight is neither"):
        open_adapter(write_expert(tmp_path / "b", random_experts("a")["a"], head, task_type="CAUSAL_LM"))


def test_trained_biases_of_the_base_are_averaged_under_their_names_in_the_model(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_expert(tmp_path / name, seed, bias="all")
    adapters = [open_adapter(tmp_path / name) for name in "ab"]
    assert adapters[0].extras == (
        "layers.0.q.bias", "layers.0.v.bias", "layers.1.q.bias", "layers.1.v.bias", "projector.bias",
    )  # fmt: skip
    write_merged(tmp_path / "merged", SUM, {name: tmp_path / name for name in "ab"}, **QUIET)
    load_with_peft(tmp_path / "merged")
    mean = sum(a.extra("layers.1.v.bias") for a in adapters) / 2
    torch.testing.assert_close(read_back(tmp_path / "merged")["layers.1.v.base_layer.bias"], mean)


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_layers_that_keep_their_weight_transposed_give_back_the_same_function(config: dict, tmp_path: Path) -> None:
    expected = save_expert(tmp_path / "expert", base=TinyConv1D, fan_in_fan_out=True, **config)
    write_merged(tmp_path / "merged", SUM, {"expert": tmp_path / "expert"}, **QUIET)
    assert json.loads((tmp_path / "merged" / CONFIG).read_text())["fan_in_fan_out"] is True
    torch.testing.assert_close(load_with_peft(tmp_path / "merged", TinyConv1D), expected, rtol=1e-5, atol=1e-5)


# --- what is refused ----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """What peft can train beside LoRA of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.linear = nn.Embedding(5, 4), nn.Conv2d(2, 3, 3), nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"target_modules": ["linear"], "target_parameters": ["embed.weight"]}, "target_parameters=['embed.weight']"),
        ({"target_modules": ["linear"], "trainable_token_indices": {"embed": [1]}}, "trainable_token_indices={'embed"),
        ({"target_modules": ["linear"], "modules_to_save": ["conv"], "bias": "all"}, "saves the same biases twice"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_can_do_beyond_lora_of_layers_is_refused(config: dict, told: str, tmp_path: Path) -> None:
    get_peft_model(Odd(), LoraConfig(**config)).save_pretrained(tmp_path / "expert")
    with pytest.raises(UserError, match=re.escape(told)):
        open_adapter(tmp_path / "expert")


def change_config(folder: Path, **values: object) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize(
    ("saved", "claimed", "told"),
    [
        ({"use_dora": True}, {"use_dora": False}, "use_dora is False, but it has a lora_magnitude_vector"),
        ({}, {"use_dora": True}, "use_dora is True, but it has no lora_magnitude_vector"),
        ({"lora_bias": True}, {"lora_bias": False}, "lora_bias is False, but it has a lora_B.bias"),
        ({}, {"lora_bias": True}, "lora_bias is True, but it has no lora_B.bias"),
        ({}, {"use_dora": True, "lora_bias": True}, "use_dora and lora_bias exclude each other"),
        (
            {"bias": "all"},
            {"bias": "none"},
            "tensors base_model.model.layers.0.q.base_layer.bias and 4 more are neither",
        ),
        ({}, {"bias": "some"}, "bias must be none, all or lora_only or null, got 'some'"),
        ({}, {"r": None}, "r must be a whole number from 1 to 1000000, got None"),
        ({}, {"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({}, {"rank_pattern": {"q(": 1}}, "rank_pattern: 'q(' is no regular expression"),
        ({}, {"alpha_pattern": {"q": "4"}}, "alpha_pattern: the value of 'q' must be a finite number, got '4'"),
        (
            {},
            {"modules_to_save": "projector"},
            "modules_to_save must be a list of at most 400 names or null, got 'p",
        ),
    ],
    ids=str,
)
def test_a_config_that_does_not_tell_what_the_tensors_are_is_refused(
    saved: dict, claimed: dict, told: str, tmp_path: Path
) -> None:
    save_expert(tmp_path / "expert", **saved)
    with pytest.raises(UserError, match=f"expert 'expert'.*{re.escape(told)}"):
        open_adapter(change_config(tmp_path / "expert", **claimed))


def test_all_that_is_wrong_with_an_expert_is_told_at_once(tmp_path: Path) -> None:
    pairs = random_experts("a")["a"]
    more = {
        "base_model.model.layers.0.q.lora_A.default.weight": torch.ones(4, 10),
        "base_model.model.layers.9.q.lora_B.weight": torch.ones(7, 4),
        "base_model.model.layers.8.q.lora_A.weight": torch.ones(4, 10, dtype=torch.int8),
        "base_model.model.layers.8.q.lora_B.weight": torch.ones(7, 4),
    }
    folder = write_expert(tmp_path / "a", pairs, more, init_lora_weights="olora", new_thing=3)
    (folder / "non_lora_trainables.bin").touch()
    with pytest.raises(UserError) as refused:
        open_adapter(folder)
    begin = f"expert 'a' ({folder}): "
    assert sorted(line.removeprefix(begin) for line in str(refused.value).splitlines()) == [
        "init_lora_weights='olora' changes the base model; convert it to plain LoRA first (A and B of that cancel in "
        "part: merge it by a method that works on their product, or with merge.space=delta)",
        "module 'layers.8.q': base_model.model.layers.8.q.lora_A.weight holds torch.int8, not floating point numbers",
        "module 'layers.9.q': it has lora_B.weight but no lora_A.weight",
        "new_thing=3 cannot be merged here",
        "non_lora_trainables.bin must be converted to modules_to_save first; it would be lost: robustmerge convert "
        "FOLDER -o OUT",
        "tensors base_model.model.layers.0.q.lora_A.default.weight and base_model.model.layers.0.q.lora_A.weight are "
        "two spellings of one name",
    ]


@pytest.mark.parametrize("kept", [0, 5, 400, -9])
@pytest.mark.parametrize("bin_file", [False, True], ids=["safetensors", "bin"])
def test_a_file_that_was_cut_off_is_refused_by_the_experts_name(bin_file: bool, kept: int, tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "cut", random_experts("a")["a"], bin_file=bin_file)
    file = folder / ("adapter_model.bin" if bin_file else WEIGHTS)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"expert 'cut': cannot read {file}: "):
        open_adapter(folder)


def test_a_number_that_is_none_beside_the_pair_is_refused_with_its_place(tmp_path: Path) -> None:
    for key, name in (("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")):
        save_expert(tmp_path / key, **{key: True})

        def spoil(tensors: dict[str, torch.Tensor], name: str = name) -> dict[str, torch.Tensor]:
            tensors[f"base_model.model.layers.1.v.{name}"][2] = float("nan")
            return tensors

        rewrite_tensors(tmp_path / key, spoil)
        with pytest.raises(UserError, match=f"expert '{key}', module 'layers.1.v': {name} holds NaN or infinity"):
            write_merged(tmp_path / "merged", SUM, {key: tmp_path / key}, **QUIET)


# --- what is written --------------------------------------------------------------------------------------------


def test_a_writer_takes_magnitudes_for_all_modules_or_for_none(tmp_path: Path) -> None:
    like = open_adapter(write_expert(tmp_path / "like", random_experts("a")["a"]))
    pair = LoraPair(torch.ones(1, 2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="module 'b' has A, B, those before have A, B, magnitude"):  # noqa: SIM117
        with AdapterWriter(tmp_path / "out", like.config, like.written_names) as writer:
            writer.add_pair("a", pair, magnitude=torch.ones(3))
            writer.add_pair("b", pair)
    assert list((tmp_path / "out").iterdir()) == []
