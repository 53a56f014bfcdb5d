"""Full models: which bases a merge can be written into, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import CONFIG
from robustmerge.formats.checkpoint import open_checkpoint
from robustmerge.hub.places import fetch_model
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
from tests.merge_cases import Tiny, save_expert
from tests.robustmerge.test_outputs import Conv, copy_out, save_model


def write_single(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def write_bin(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def write_shards(suffix: str, save: Callable[[dict, Path], None]) -> Callable[[Path, dict], None]:
    stem = "model" if suffix == "safetensors" else "pytorch_model"

    def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(tensors)
        where = {name: f"{stem}-0000{1 + index % 2}-of-00002.{suffix}" for index, name in enumerate(names)}
        for file in set(where.values()):
            save({name: tensors[name] for name in names if where[name] == file}, folder / file)
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))

    return write


BASES = {
    "single": write_single,
    "bin": write_bin,
    "shards": write_shards("safetensors", save_file),
    "bin shards": write_shards("bin", torch.save),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_full_model_has_the_names_and_dtypes_of_its_base_and_what_is_not_touched_is_the_same(tmp_path, kind):
    save_expert(tmp_path / "expert", modules_to_save=["projector"])
    adapter = open_adapter(tmp_path / "expert")
    before = {name: weight.to(torch.bfloat16) for name, weight in Tiny().state_dict().items()}
    before |= {"steps": torch.tensor(7), "scale": torch.tensor([0.1, 0.2])}
    (tmp_path / "base").mkdir()
    BASES[kind](tmp_path / "base", before)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "manifest.json").write_text("{}")
    folder = copy_out(tmp_path / "model", Out(format="model"), adapter, tmp_path / "base")
    after = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    assert {name: (x.dtype, x.shape) for name, x in after.items()} == {n: (x.dtype, x.shape) for n, x in before.items()}
    for module in adapter.modules:
        name = f"{module}.weight"
        wanted = (before[name].float() + adapter.pair(module).delta()).bfloat16()
        assert torch.allclose(after.pop(name).float(), wanted.float(), rtol=0.01)
    for extra in adapter.extras:
        assert torch.equal(after.pop(extra), adapter.extra(extra).bfloat16())
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    files = {file.name for file in folder.iterdir()}
    assert {"README.md", "tokenizer.json"} < files and "manifest.json" not in files
    if "shards" in kind:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) <= files and set(index["weight_map"]) == set(before)


def change(folder: Path, **changes: torch.Tensor | None) -> Path:
    """The model folder with other tensors; None takes one away. `__` stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_base_that_the_experts_do_not_fit_is_refused_with_all_that_is_wrong(tmp_path):
    save_expert(tmp_path / "expert")
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    change(base, layers__0__q__weight=None, layers__1__q__weight=torch.ones(5, 6))
    change(base, layers__1__v__weight=torch.ones(6, 6, dtype=torch.int8))
    with pytest.raises(UserError) as raised:
        copy_out(tmp_path / "out", Out(format="model"), adapter, base)
    first, second, third = str(raised.value).splitlines()
    assert first.startswith(f"the base {base} has no tensor 'layers.0.q.weight' (the nearest is 'layers.")
    assert second == f"'layers.1.q.weight' is [6, 6] in the experts, [5, 6] in {base}"
    assert "quantised" in third and not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", [None, ["projector"]])
def test_a_quantised_base_takes_neither_an_update_nor_a_layer_that_was_trained_in_full(tmp_path: Path, saved) -> None:
    save_expert(tmp_path / "expert", modules_to_save=saved)
    changed = "projector" if saved else "layers__0__q"
    base = change(save_model(tmp_path / "base"), **{f"{changed}__weight": torch.ones(6, 6, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"is torch\.int8 in .*: a quantised base cannot hold what was trained"):
        copy_out(tmp_path / "out", Out(format="model"), open_adapter(tmp_path / "expert"), base)
    assert not (tmp_path / "out").exists()


def test_lora_bias_on_a_base_without_biases_is_refused(tmp_path):
    save_expert(tmp_path / "expert", lora_bias=True)
    base = change(save_model(tmp_path / "base"), layers__0__q__bias=None)
    with pytest.raises(UserError, match=r"has no tensor 'layers\.0\.q\.bias'"):
        copy_out(tmp_path / "out", Out(format="model"), open_adapter(tmp_path / "expert"), base)


def test_embeddings_that_are_also_the_output_head_are_left_alone(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.ones(4, 3), "lm_head.weight": torch.ones(4, 3)}
    for told, names in (({"text_config": {"tie_word_embeddings": True}}, 2), ({}, 1)):
        folder = tmp_path / str(names)
        folder.mkdir()
        save_file(dict(list(tensors.items())[:names]), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(told))
        for name in tensors:
            with pytest.raises(UserError, match=f"'{name}' cannot be changed in the base .*are one weight"):
                open_checkpoint(folder).find(name, (4, 3), torch.float32)


@pytest.mark.parametrize(
    "name",
    ["transformer.word_embeddings", "shared", "bert.embeddings.word_embeddings", "cls.predictions.decoder", "wte"],
)
def test_a_tied_embedding_of_any_name_is_left_alone(name: str, tmp_path: Path) -> None:
    save_file({f"{name}.weight": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="are one weight"):
        open_checkpoint(tmp_path).find(f"{name}.weight", (4, 3), torch.float32)


@pytest.mark.parametrize("kind", ["model", "delta"])
@pytest.mark.parametrize(("flag", "model_type"), [(True, "llama"), (True, None), (False, "gpt2")])
def test_square_weights_that_may_be_transposed_are_refused(flag, model_type, kind, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_expert(tmp_path / "expert")
    config = json.loads((tmp_path / "expert" / CONFIG).read_text())
    config |= {"fan_in_fan_out": flag, "base_model_name_or_path": str(base)}
    (tmp_path / "expert" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="all modules are square: no shape says whether its weights are transposed"):
        copy_out(tmp_path / "out", Out(format=kind), open_adapter(tmp_path / "expert"), base)
    assert not (tmp_path / "out").exists()


def test_a_delta_whose_layout_only_the_base_would_tell_is_refused(tmp_path: Path) -> None:
    """PEFT saves one fan_in_fan_out for all modules, that of the last: of a head beside the layers of a GPT-2."""
    model = get_peft_model(Conv(), LoraConfig(r=3, target_modules=["up", "down"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path / "expert")
    base = save_model(tmp_path / "base", Conv())
    config = json.loads((tmp_path / "expert" / CONFIG).read_text())
    config |= {"fan_in_fan_out": False, "base_model_name_or_path": str(base)}
    (tmp_path / "expert" / CONFIG).write_text(json.dumps(config))
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="made without its weights: nothing says whether its weights are transposed"):
        copy_out(tmp_path / "out", Out(format="delta"), open_adapter(tmp_path / "expert"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("on_disk", "in_memory"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("vision_tower.vision_model.embeddings.x", "model.vision_tower.embeddings.x"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
    ],
)
def test_a_tensor_is_found_under_the_names_that_checkpoints_on_the_hub_have(tmp_path, on_disk, in_memory):
    save_file({on_disk: torch.ones(2, 3), "other.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).find(in_memory, (2, 3), torch.float32) == on_disk


def test_a_base_is_a_local_folder_or_a_repository(tmp_path, monkeypatch):
    base = save_model(tmp_path / "base")
    assert fetch_model(base) == base
    for wrong in ("nowhere", str(base / "config.json"), None):
        with pytest.raises(UserError, match=r"\(merge\.out\.base\)"):
            fetch_model(wrong)
    asked = []
    monkeypatch.setattr("robustmerge.hub.places.fetch", lambda *asking: (asked.append(asking), base)[1])
    assert fetch_model("user/repo@v2") == base
    (base / "model.safetensors").unlink()
    fetch_model("user/repo")
    assert [str(place) for place, _ in asked] == ["user/repo@v2", "user/repo", "user/repo"]
    assert asked[-1][1] == ["pytorch_model*.bin"]


def test_the_base_is_the_one_that_the_experts_name_unless_another_is_given(tmp_path):
    save_expert(tmp_path / "expert")
    base = save_model(tmp_path / "base")
    config = json.loads((tmp_path / "expert" / CONFIG).read_text())
    (tmp_path / "expert" / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    assert (copy_out(tmp_path / "out", Out(format="model"), open_adapter(tmp_path / "expert")) / "config.json").exists()


def test_an_incomplete_or_empty_base_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no model folder: it has neither .*; it has nothing"):
        open_checkpoint(tmp_path / "nowhere")
    write_shards("safetensors", save_file)(tmp_path, Tiny().state_dict())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="is incomplete: .* names model-00002-of-00002.safetensors, which is not there"):
        open_checkpoint(tmp_path)
    for text, reason in (("[]", "cannot be read as the index of a checkpoint"), ("{}", "is no index of a checkpoint")):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            open_checkpoint(tmp_path)
