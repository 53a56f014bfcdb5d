"""What a merge writes: the formats hold the same function, whole or not at all. Run: pytest tests/test_outputs.py"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from robustmerge import checkpoints, deltas
from robustmerge.adapter import CONFIG, Adapter, LoraPair, open_adapter
from robustmerge.checkpoints import find_model, open_checkpoint
from robustmerge.deltas import open_delta
from robustmerge.method import Out
from robustmerge.outputs import how_to_load, open_writer
from robustmerge.settings import UserError
from tests.merge_cases import INPUT, Tiny, save_expert

FORMATS = ("adapter", "delta", "model")
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.0.q": 2}, "alpha_pattern": {"layers.1.v": 1}},
    "saved": {"modules_to_save": ["projector"]},
    "biases": {"bias": "all"},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "both biases": {"lora_bias": True, "bias": "all"},
}
NO_DELTA = ("dora", "lora_bias", "both biases")


class Conv(nn.Module):
    """Two layers that keep their weights transposed, as GPT-2's do, neither of them square."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = Conv1D(8, 6), Conv1D(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


def save_model(folder: Path, model: nn.Module | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file((model or Tiny()).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    return folder


def copy_out(folder: Path, out: Out, adapter: Adapter, base: Path | None = None, as_dense: bool = False) -> Path:
    """The expert as it is, written in another format."""
    with open_writer(folder, out, [adapter], "a card\n", base) as writer:
        for module in adapter.modules:
            pair = adapter.pair(module)
            update = pair.delta() if as_dense else pair
            writer.add_update(module, update, magnitude=adapter.magnitude(module), bias=adapter.bias(module))
        for extra in adapter.extras:
            writer.add_extra(extra, adapter.extra(extra))
    assert writer.ranks == (adapter.ranks if out.format in (None, "adapter") else {})
    return folder


def answer_of(kind: str, folder: Path, model: nn.Module | None = None) -> torch.Tensor:
    """What the model gives for INPUT, loaded by the lines of the card; a model folder of no class, by its tensors."""
    model = model or Tiny()
    if kind == "model":
        model.load_state_dict(load_file(folder / "model.safetensors"))
    else:
        found = {"base_model": model, "model": model}
        exec(how_to_load(kind).replace("path/of/this/folder", str(folder)), found)
        model = found["model"]
    with torch.no_grad():
        return model.eval()(INPUT)


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() <= 2e-6 * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_holds_the_same_function(tmp_path, kind):
    wanted = save_expert(tmp_path / "expert", **KINDS[kind])
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    for form in FORMATS:
        out = Out(format=form, base=str(base))
        if form == "delta" and kind in NO_DELTA:
            with pytest.raises(UserError, match=r"expert 'expert': .*take merge\.out\.format=adapter or model"):
                copy_out(tmp_path / form, out, adapter)
            assert not (tmp_path / form).exists()
        else:
            assert_close(answer_of(form, copy_out(tmp_path / form, out, adapter)), wanted)


@pytest.mark.parametrize("dora", [False, True])
def test_layers_with_transposed_weights_are_changed_the_right_way_round(tmp_path, dora):
    config = LoraConfig(r=3, target_modules=["up", "down"], fan_in_fan_out=True, use_dora=dora)
    model = get_peft_model(Conv(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=0.5)
    model.save_pretrained(tmp_path / "expert")
    with torch.no_grad():
        wanted = model.eval()(INPUT)
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base", Conv())
    for form in ("adapter", "model") if dora else FORMATS:
        for as_dense in (False, True) if form != "adapter" else (False,):
            folder = copy_out(tmp_path / f"{form}{as_dense}", Out(format=form), adapter, base, as_dense)
            assert_close(answer_of(form, folder, Conv()), wanted)


def test_a_dense_update_is_written_as_its_factors_are_but_is_no_adapter(tmp_path):
    wanted = save_expert(tmp_path / "expert")
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    for form in ("delta", "model"):
        folder = copy_out(tmp_path / form, Out(format=form), adapter, base, as_dense=True)
        assert_close(answer_of(form, folder), wanted)
    with pytest.raises(UserError, match=r"module 'layers\.0\.q': a dense update \[6, 6\] is no adapter; .*merge\.out"):
        copy_out(tmp_path / "adapter", Out(), adapter, as_dense=True)
    assert list((tmp_path / "adapter").iterdir()) == []


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


def test_what_is_written_depends_on_what_goes_in_and_nothing_else(tmp_path):
    save_expert(tmp_path / "expert", modules_to_save=["projector"])
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    for form in FORMATS:
        one, two = (copy_out(tmp_path / f"{form}{n}", Out(format=form), adapter, base) for n in (1, 2))
        assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}


@pytest.mark.parametrize("form", FORMATS)
def test_an_error_or_a_kill_leaves_nothing_and_the_next_run_clears_up(tmp_path, form):
    save_expert(tmp_path / "expert")
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")

    def write(then: Callable[[], None]) -> None:
        with open_writer(tmp_path / "out", Out(format=form), [adapter], "", base) as writer:
            writer.add_update(adapter.modules[0], adapter.pair(adapter.modules[0]))
            then()

    with pytest.raises(KeyboardInterrupt):
        write(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert list((tmp_path / "out").iterdir()) == []
    child = os.fork()
    if child == 0:
        write(lambda: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    left = [file.name for file in (tmp_path / "out").iterdir()]
    assert left and all(name.startswith(".") for name in left)
    copy_out(tmp_path / "out", Out(format=form), adapter, base)
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def test_nothing_is_written_over_the_base_or_before_everything_is_there(tmp_path):
    save_expert(tmp_path / "expert")
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    with pytest.raises(UserError, match="is the base model itself"):
        copy_out(base, Out(format="model"), adapter, base)
    with (
        pytest.raises(ValueError, match=r"lacks 3 tensors, as add\.layers\.0\.v\.weight"),
        open_writer(tmp_path / "out", Out(format="delta"), [adapter], "") as writer,
    ):
        writer.add_update(adapter.modules[0], adapter.pair(adapter.modules[0]))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("form", "dtype"), [("delta", "float16"), ("model", "float32"), ("adapter", "float16")])
def test_a_value_that_does_not_fit_the_dtype_is_an_error(tmp_path, form, dtype):
    save_expert(tmp_path / "expert")
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base", Tiny().half())
    huge = LoraPair(torch.full((1, 6), 1e3), torch.full((6, 1), 1e5))
    said = r"layers\.0\.q.*the merged values do not fit torch\.float16"
    with (
        pytest.raises(UserError, match=said),
        open_writer(tmp_path / "out", Out(format=form, dtype=dtype), [adapter], "", base) as writer,
    ):
        writer.add_update("layers.0.q", huge)
    assert list((tmp_path / "out").iterdir()) == []


def test_deltas_are_written_in_the_dtype_asked_for(tmp_path):
    save_expert(tmp_path / "expert", dtype=torch.bfloat16)
    adapter = open_adapter(tmp_path / "expert")
    for dtype in ("float16", "bfloat16", "experts"):
        delta = open_delta(copy_out(tmp_path / dtype, Out(format="delta", dtype=dtype), adapter))
        wanted = adapter.dtype if dtype == "experts" else getattr(torch, dtype)
        assert {tensor.dtype for _, _, tensor in delta.changes()} == {wanted}
    assert delta.config == {"format": 1, "base_model_name_or_path": None, "revision": None}


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
                open_checkpoint(folder).find(name, (4, 3))


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
    assert open_checkpoint(tmp_path).find(in_memory, (2, 3)) == on_disk


def test_a_base_is_a_local_folder_or_a_repository(tmp_path, monkeypatch):
    base = save_model(tmp_path / "base")
    assert find_model(base) == base
    for wrong in ("nowhere", str(base / "config.json"), None):
        with pytest.raises(UserError, match=r"\(merge\.out\.base\)"):
            find_model(wrong)
    asked = []
    monkeypatch.setattr(checkpoints, "fetch", lambda *asking: (asked.append(asking), base)[1])
    assert find_model("user/repo@v2") == base
    (base / "model.safetensors").unlink()
    find_model("user/repo")
    assert [name for name, _ in asked] == ["user/repo@v2", "user/repo", "user/repo"]
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
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is no index of a checkpoint"):
        open_checkpoint(tmp_path)


def test_a_folder_that_holds_no_deltas_is_refused(tmp_path):
    save_expert(tmp_path / "expert")
    folder = copy_out(tmp_path / "delta", Out(format="delta"), open_adapter(tmp_path / "expert"))
    with pytest.raises(UserError, match="is no delta folder: it has no delta_config.json"):
        open_delta(tmp_path)
    shutil.copy(folder / deltas.WEIGHTS, tmp_path / "whole")
    (folder / deltas.WEIGHTS).write_bytes((tmp_path / "whole").read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot read .*delta.safetensors"):
        open_delta(folder)
    save_file({"layers.0.q.weight": torch.ones(6, 6)}, folder / deltas.WEIGHTS)
    with pytest.raises(UserError, match=r"a name begins with 'add\.' or 'set\.', got layers\.0\.q\.weight"):
        open_delta(folder)
    (folder / deltas.CONFIG).write_text('{"format": 2}')
    with pytest.raises(UserError, match="format must be 1, got 2"):
        open_delta(folder)
