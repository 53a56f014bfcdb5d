"""What a merge writes: the formats hold the same function, whole or not at all."""

from __future__ import annotations

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

from robustmerge.formats import delta
from robustmerge.formats.adapter import Adapter, LoraPair, open_adapter
from robustmerge.formats.adapter_writer import balance
from robustmerge.formats.delta import open_delta
from robustmerge.formats.output import how_to_load, open_writer
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
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
    with open_writer(folder, out.format or "adapter", [adapter], "a card\n", out.dtype, base or out.base) as writer:
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
        out = Out(format=form, base=str(base) if form == "model" else None)
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
        with open_writer(tmp_path / "out", form, [adapter], "", base=base) as writer:
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
        open_writer(tmp_path / "out", "delta", [adapter], "") as writer,
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
        open_writer(tmp_path / "out", form, [adapter], "", dtype, base) as writer,
    ):
        writer.add_update("layers.0.q", huge)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-6])
def test_a_half_precision_holds_an_update_of_small_alpha_as_well_as_any(tmp_path: Path, size: float) -> None:
    torch.manual_seed(0)
    pair = LoraPair(torch.randn(4, 6), size / 64 * torch.randn(6, 4))
    written = balance(pair)
    assert torch.equal(written.delta(), pair.delta())
    kept = LoraPair(written.A.half().float(), written.B.half().float()).delta()
    assert (kept - pair.delta()).norm() < 1e-3 * pair.delta().norm()
    save_expert(tmp_path / "expert")
    adapter = open_adapter(tmp_path / "expert")
    with open_writer(tmp_path / "out", "adapter", [adapter], "", "float16") as writer:
        for module in adapter.modules:
            writer.add_update(module, pair)
    assert torch.equal(open_adapter(tmp_path / "out").pair(adapter.modules[0]).delta(), kept)


def test_deltas_are_written_in_the_dtype_asked_for(tmp_path):
    save_expert(tmp_path / "expert", dtype=torch.bfloat16)
    adapter = open_adapter(tmp_path / "expert")
    for dtype in ("float16", "bfloat16", "experts"):
        delta = open_delta(copy_out(tmp_path / dtype, Out(format="delta", dtype=dtype), adapter))
        wanted = adapter.dtype if dtype == "experts" else getattr(torch, dtype)
        assert {tensor.dtype for _, _, tensor in delta.changes()} == {wanted}
    assert delta.config == {"format": 1, "base_model_name_or_path": None, "revision": None}


def test_a_folder_that_holds_no_deltas_is_refused(tmp_path):
    save_expert(tmp_path / "expert")
    folder = copy_out(tmp_path / "delta", Out(format="delta"), open_adapter(tmp_path / "expert"))
    with pytest.raises(UserError, match="is no delta folder: it has no delta_config.json"):
        open_delta(tmp_path)
    shutil.copy(folder / delta.WEIGHTS, tmp_path / "whole")
    (folder / delta.WEIGHTS).write_bytes((tmp_path / "whole").read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot read .*delta.safetensors"):
        open_delta(folder)
    save_file({"layers.0.q.weight": torch.ones(6, 6)}, folder / delta.WEIGHTS)
    with pytest.raises(UserError, match=r"a name begins with 'add\.' or 'set\.', got layers\.0\.q\.weight"):
        open_delta(folder)
    (folder / delta.DELTA_CONFIG).write_text('{"format": 2}')
    with pytest.raises(UserError, match="format must be 1, got 2"):
        open_delta(folder)
