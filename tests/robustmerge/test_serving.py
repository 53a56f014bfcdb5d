"""Adapters for servers: one allowed rank, padded without a change, nothing in them that vLLM does not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustmerge.cli.program import main
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.output import open_writer
from robustmerge.formats.serving import SERVED_RANKS, serve_command
from robustmerge.low_rank import concatenate
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.method_parts import Out
from robustmerge.stage.address import read_manifest, settings_in_identity
from robustmerge.stage.settings import ConfigError, UserError
from tests.merge_cases import QUIET, Tiny, load_with_peft, random_experts, save_expert, write_expert
from tests.robustmerge.test_outputs import save_model

# the fields of vLLM's PEFTHelper, and what its search for an adapter by name compares
READ_BY_VLLM = {
    "r", "lora_alpha", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora",
    "peft_type", "base_model_name_or_path",
}  # fmt: skip
PLAIN = {"rslora": {"use_rslora": True}, "ranks": {"rank_pattern": {"layers.0.q": 1, "layers.1.v": 5}}}


def merge_for(server: str, folder: Path, *experts: Path, base: Path | None = None, **changes: object) -> Path:
    method = read_method("average", out__for=server, out__base=base and str(base), **changes)
    return merge_folders([*experts], method, folder, **QUIET)


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def ranks_of(folder: Path) -> set[int]:
    return {x.shape["lora_B" in name] for name, x in load_file(folder / WEIGHTS).items()}


@pytest.mark.parametrize("kind", PLAIN)
def test_padding_changes_nothing_that_the_model_says(tmp_path: Path, kind: str) -> None:
    wanted = save_expert(tmp_path / "expert", **PLAIN[kind])
    for server in ("vllm", "sglang"):
        out = merge_for(server, tmp_path / server, tmp_path / "expert")
        torch.testing.assert_close(load_with_peft(out), wanted, rtol=0, atol=5e-6)
        assert ranks_of(out) == {8}
        assert set(config_of(out)) == READ_BY_VLLM


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (3, 8), (8, 8), (33, 64), (300, 320), (600, 8)])
def test_the_rank_is_one_that_is_allowed_and_the_update_is_the_same(tmp_path: Path, rank: int, allowed: int) -> None:
    """A rank of 600 is cut to those 7 that the update of 7 x 10 has in truth."""
    (pairs,) = random_experts("a", rank=rank).values()
    out = merge_for("vllm", tmp_path / "out", write_expert(tmp_path / "a", pairs))
    assert ranks_of(out) == {allowed} <= set(SERVED_RANKS)
    assert (config_of(out)["r"], config_of(out)["lora_alpha"]) == (allowed, allowed)
    merged = open_adapter(out)
    for module, pair in pairs.items():
        torch.testing.assert_close(merged.pair(module).delta(), pair.delta(), rtol=1e-4, atol=1e-3)
    assert "cut" not in read_manifest(out / "manifest.json")["record"]


def test_a_lower_rank_is_a_cut_whose_error_is_said(tmp_path: Path, capsys) -> None:
    experts = random_experts("ab", rank=4)
    for name, pairs in experts.items():
        write_expert(tmp_path / name, pairs)
    words = ["--set", "space=delta", "--rank", "2", "--for", "vllm"]
    main(["merge", "average", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out"), *words])
    lost = whole = 0.0
    for module in experts["a"]:
        exact = concatenate([experts[name][module] for name in "ab"], [0.5, 0.5]).delta()
        lost += float((open_adapter(tmp_path / "out").pair(module).delta() - exact).square().sum())
        whole += float(exact.square().sum())
    share = read_manifest(tmp_path / "out" / "manifest.json")["record"]["cut"]
    assert share == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert f"\n  left out by the cut  {100 * share:.2g} % of the update's norm\n" in capsys.readouterr().out
    assert ranks_of(tmp_path / "out") == {8}
    assert Out(for_="vllm").rank_for([4]) == Out(rank=1000, for_="vllm").rank_for([4]) == SERVED_RANKS[-1]


def test_what_was_trained_in_full_is_in_a_base_beside_the_adapter(tmp_path: Path, capsys) -> None:
    wanted = save_expert(tmp_path / "expert", modules_to_save=["projector"], bias="none")
    base = save_model(tmp_path / "base")
    words = ["-o", str(tmp_path / "out"), "--for", "vllm", "--base", str(base), "--dtype", "bfloat16"]
    main(["merge", "average", str(tmp_path / "expert"), *words])
    exact = merge_for("vllm", tmp_path / "exact", tmp_path / "expert", base=base)
    tensors = load_file(exact / "base" / "model.safetensors")

    class WithBase(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.load_state_dict(tensors)

    torch.testing.assert_close(load_with_peft(exact, WithBase), wanted, rtol=0, atol=5e-6)
    assert config_of(exact)["base_model_name_or_path"] is None  # the one that experts name has not the projector
    assert all(torch.equal(x, tensors[name]) for name, x in load_file(tmp_path / "out/base/model.safetensors").items())
    command = f"vllm serve {tmp_path}/out/base --enable-lora --max-lora-rank 8 --lora-modules out={tmp_path}/out\n"
    assert f"\nserve it:\n\n    {command}" in capsys.readouterr().out
    assert "vllm serve path/of/this/folder/base --enable-lora" in (exact / "README.md").read_text()


@pytest.mark.parametrize("out", [{"out__for": "vllm"}, {"out__format": "model"}])
def test_a_merge_into_a_base_is_another_one_once_the_weights_of_the_base_are_others(tmp_path: Path, out: dict) -> None:
    save_expert(tmp_path / "expert", modules_to_save=["projector"])
    base = save_model(tmp_path / "base")
    method = read_method("average", out__base=str(base), **out)
    for _ in range(2):
        merge_folders([tmp_path / "expert"], method, tmp_path / "out", **QUIET)
    save_file({name: x + 1 for name, x in load_file(base / "model.safetensors").items()}, base / "model.safetensors")
    with pytest.raises(UserError, match="was made of other experts, base or settings"):
        merge_folders([tmp_path / "expert"], method, tmp_path / "out", **QUIET)


def test_the_command_names_the_base_of_the_experts(tmp_path: Path, capsys) -> None:
    (pairs,) = random_experts("a").values()
    write_expert(tmp_path / "a", pairs, base_model_name_or_path="user/base", revision="v1")
    main(["merge", "average", str(tmp_path / "a"), "-o", str(tmp_path / "out"), "--for", "sglang"])
    places = f"--lora-paths out={tmp_path}/out --max-lora-rank 8"
    command = f"python -m sglang.launch_server --model-path user/base --revision v1 --enable-lora {places}\n"
    assert f"\n    {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "expert 'expert' has DoRA, and vllm serves plain LoRA alone; take merge.out.format=model"),
        ({"lora_bias": True}, "expert 'expert' has lora_bias, and vllm serves plain LoRA alone; take merge.out.form"),
        ({"modules_to_save": ["projector"]}, r"'projector\.bias' and 1 more in full, .* give the base .*out\.base=FO"),
    ],
)
def test_what_servers_do_not_take_is_refused_with_the_way_out(tmp_path: Path, config: dict, message: str) -> None:
    save_expert(tmp_path / "expert", **config)
    with pytest.raises(UserError, match=message):
        merge_for("vllm", tmp_path / "out", tmp_path / "expert")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            {"for": "vlm"},
            r"unknown for 'vlm'; choose one of sglang, vllm \(did you mean 'vllm'\?\) \(merge\.out\.for\)",
        ),
        ({"for": 3}, r"expected a text, got 3 \(merge\.out\.for\)"),
        ({"for": "vllm", "format": "delta"}, r"vllm takes adapters: .* leave the format away, got delta"),
        ({"base": "b"}, r"a base is for format=model and for a server \(merge\.out\.for\), got format null"),
    ],
)
def test_settings_that_make_no_sense_are_refused(out: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_method("ties", out=out)


def test_an_error_leaves_neither_adapter_nor_base(tmp_path: Path) -> None:
    save_expert(tmp_path / "expert", modules_to_save=["projector"])
    adapter, base = open_adapter(tmp_path / "expert"), save_model(tmp_path / "base")
    with (
        pytest.raises(UserError, match=r"'projector\.bias': the merged values do not fit"),
        open_writer(tmp_path / "out", "adapter", [adapter], "", base=base, server="vllm") as writer,
    ):
        for module in adapter.modules:
            writer.add_update(module, adapter.pair(module))
        for extra in adapter.extras:
            writer.add_extra(extra, adapter.extra(extra) * float("inf"))
    assert not [*(tmp_path / "out").iterdir()]


def test_a_merge_for_no_server_has_the_identity_that_it_had() -> None:
    assert settings_in_identity(Out()) == {"rank": None, "dtype": "float32"}
    assert settings_in_identity(Out(for_="vllm"))["for"] == "vllm"


def test_a_folder_with_an_at_sign_is_served_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "merged@v1" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert serve_command("vllm", "merged@v1/base", 16, "merged@v1", "m").startswith(
        "vllm serve merged@v1/base --enable"
    )
