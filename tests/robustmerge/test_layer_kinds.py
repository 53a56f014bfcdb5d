"""LoRA of embeddings, output heads and convolutions: read, merged and written as LoRA of linear layers is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from robustmerge.analysis.effect import list_updates
from robustmerge.analysis.inspection import inspect_folders
from robustmerge.analysis.retention import open_update
from robustmerge.formats.adapter import PREFIX, open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.full_model import export_model
from robustmerge.formats.output import how_to_load
from robustmerge.live import merge_into
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, rewrite_tensors

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(6).reshape(2, 3)
MODULES = ["embed_tokens", "sound", "image", "video", "up", "lm_head"]
FORMATS = ("adapter", "delta", "model")
SUM = read_method("task_arithmetic", space="delta", strength=1.0)
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "ranks, alphas and rsLoRA": [{"lora_alpha": 6}, {"r": 2, "lora_alpha": 5, "use_rslora": True}],
    "patterns": [{"rank_pattern": {"image": 1, "embed_tokens": 2}, "alpha_pattern": {"embed_tokens": 9}}, {}],
    "other modules": [{"target_modules": ["embed_tokens", "up"]}, {"target_modules": ["image", "up", "lm_head"]}],
}


class Senses(nn.Module):
    """A layer of every kind that LoRA can be put on, no two of their lengths equal where shapes could be mistaken."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.up = nn.Embedding(7, 4), nn.Linear(4, 5)
        self.sound = nn.Conv1d(5, 6, 3, padding=1)
        self.image = nn.Conv2d(1, 3, (3, 2), stride=(2, 1))
        self.video = nn.Conv3d(3, 8, (1, 2, 1), bias=False)
        self.lm_head = nn.Linear(8, 7, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.up(self.embed_tokens(tokens)))
        x = self.image(torch.tanh(self.sound(x.transpose(1, 2)))[:, None])
        return self.lm_head(torch.tanh(self.video(x[:, :, None])).flatten(2).transpose(1, 2))


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS)


def save_senses(folder: Path, seed: int = 0, base: str | Path | None = None, **config: Any) -> PeftModel:
    """A random adapter of Senses, in the model and in the folder. base: what the adapter calls the model."""
    senses = Senses()
    senses.name_or_path = str(base) if base else None  # type: ignore[assignment]
    model = get_peft_model(senses, LoraConfig(**{"r": 3, "target_modules": MODULES, **config}))
    torch.manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=0.5)
    model.save_pretrained(folder)
    return model


def save_base(folder: Path) -> Path:
    folder.mkdir()
    save_file(Senses().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    return folder


def load(form: str, folder: Path) -> nn.Module:
    """Senses with what was written; every tensor of an adapter arrives, and none lacks."""
    model: Any = Senses()
    if form == "adapter":
        model = PeftModel.from_pretrained(model, folder)
        arrived, written = get_peft_model_state_dict(model), load_file(folder / WEIGHTS)
        assert arrived.keys() == written.keys()
        assert all(torch.equal(arrived[name], x) for name, x in written.items())
    elif form == "delta":
        exec(how_to_load("delta").replace("path/of/this/folder", str(folder)), {"base_model": model})
    else:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def merge_in_all_formats(folder: Path, experts: list[Path], formats: tuple[str, ...] = FORMATS) -> dict[str, Path]:
    """The sum of the experts' updates in every format; the base is the one that they name."""
    for form in formats:
        rank = {"out__rank": sum(max(open_adapter(expert).ranks.values()) for expert in experts)}
        method = read_method(
            "task_arithmetic", space="delta", strength=1.0, out__format=form, **(rank if form == "adapter" else {})
        )
        merge_folders(experts, method, folder / form, **QUIET)
    return {form: folder / form for form in formats}


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS)
def test_a_merge_does_in_every_format_what_the_sum_of_the_experts_updates_does(
    configs: list[dict[str, Any]], tmp_path: Path
) -> None:
    base, expected = save_base(tmp_path / "base"), Senses()
    for seed, config in enumerate(configs):
        model = save_senses(tmp_path / f"expert{seed}", seed, base, **config)
        tuned = model.merge_and_unload().state_dict()  # by peft itself
        for name, weight in Senses().state_dict().items():
            expected.state_dict()[name] += tuned[name] - weight
    experts = [tmp_path / f"expert{seed}" for seed in range(len(configs))]
    for form, folder in merge_in_all_formats(tmp_path / "merged", experts).items():
        assert_close(answer(load(form, folder)), answer(expected))
    export_model(base, tmp_path / "merged/delta", tmp_path / "exported")
    assert_close(answer(load("model", tmp_path / "exported")), answer(expected))


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"lora_bias": True, "target_modules": ["image", "sound"]}, {"bias": "lora_only"}],
    ids=["dora", "lora_bias", "bias"],
)
def test_what_goes_with_an_update_is_merged_with_it(config: dict[str, Any], tmp_path: Path) -> None:
    model = save_senses(tmp_path / "expert", base=save_base(tmp_path / "base"), **config)
    expected = answer(model)
    for form, folder in merge_in_all_formats(tmp_path, [tmp_path / "expert"], ("adapter", "model")).items():
        assert_close(answer(load(form, folder)), expected)


@pytest.mark.parametrize(
    "method",
    [
        read_method("average"),
        read_method("ties", space="delta", out__rank=3),
        read_method("ties", space="knots", prune__density=0.8),
        read_method("ties", space="core"),
        read_method("robustmerge", prune__density=0.9, scale__empty_row="drop"),
        read_method("dare", seed=1),
        read_method("tsv_m"),
        read_method("iso_c", out__rank=3),
    ],
    ids=lambda method: f"{method.name}",
)
def test_every_method_merges_all_kinds_of_layers_and_what_it_writes_loads(method: Any, tmp_path: Path) -> None:
    for seed in range(2):
        save_senses(tmp_path / f"expert{seed}", seed)
    merge_folders([tmp_path / "expert0", tmp_path / "expert1"], method, tmp_path / "merged", **QUIET)
    merged = load("adapter", tmp_path / "merged")
    assert not torch.equal(answer(merged), answer(Senses()))
    assert list_updates(merged).keys() == set(MODULES)


def test_rows_of_A_and_columns_of_B_are_the_directions_of_the_rank_in_every_kind(tmp_path: Path) -> None:
    save_senses(tmp_path / "expert")
    adapter, stored = open_adapter(tmp_path / "expert"), load_file(tmp_path / "expert" / WEIGHTS)
    names = {"embed_tokens": "lora_embedding_{}", "video": "lora_{}.weight", "up": "lora_{}.weight"}
    for module, name in names.items():
        A, B = (stored[f"{PREFIX}{module}.{name.format(part)}"] for part in "AB")
        assert torch.equal(adapter.pair(module).A, A.reshape(3, -1))
        assert torch.equal(adapter.pair(module).B, B.reshape(-1, 3) * (8 / 3))
    assert [adapter.shapes[module] for module in names] == [(4, 3, 7), (8, 3, 6), (5, 3, 4)]


def test_the_updates_in_a_model_are_those_of_the_folder(tmp_path: Path) -> None:
    model, adapter = save_senses(tmp_path / "expert"), open_adapter(tmp_path / "expert")
    updates = list_updates(model)
    assert all(torch.equal(updates[module].delta(), adapter.pair(module).delta()) for module in MODULES)


def test_a_merge_in_the_model_is_the_merge_of_the_folders(tmp_path: Path) -> None:
    model = get_peft_model(Senses(), LoraConfig(r=3, target_modules=MODULES, init_lora_weights=False), "one")
    model.add_adapter("two", LoraConfig(r=2, target_modules=MODULES, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    merge_into(model, ["one", "two"], "knots_ties", **QUIET)
    merge_folders([tmp_path / "one", tmp_path / "two"], "knots_ties", tmp_path / "merged", **QUIET)
    live, written = get_peft_model_state_dict(model, adapter_name="merged"), load_file(tmp_path / "merged" / WEIGHTS)
    assert live.keys() == written.keys()
    assert all(torch.equal(live[name], x) for name, x in written.items())
    model.set_adapter("merged")
    assert_close(answer(model), answer(load("adapter", tmp_path / "merged")))


def test_a_dense_merge_of_all_kinds_of_layers_is_measured_as_an_adapter_of_it_is(tmp_path: Path) -> None:
    save_senses(tmp_path / "expert", base=save_base(tmp_path / "base"))
    expert, merged = open_adapter(tmp_path / "expert"), tmp_path / "merged"
    formats = merge_in_all_formats(merged, [tmp_path / "expert"], ("adapter", "delta"))
    dense, pair = (open_update(formats[form], form, expert) for form in ("delta", "adapter"))
    for module in MODULES:
        assert_close(dense(module), pair(module).delta())


def test_an_inspection_measures_all_kinds_of_layers(tmp_path: Path) -> None:
    for seed in range(2):
        save_senses(tmp_path / f"expert{seed}", seed)
    inspection = inspect_folders({f"expert{seed}": tmp_path / f"expert{seed}" for seed in range(2)})
    assert not inspection.disagreements
    assert {row["kind"]: (row["d_out"], row["d_in"]) for row in inspection.kinds} == {
        "embed_tokens": (4, 7), "sound": (6, 15), "image": (3, 6), "video": (8, 6), "up": (5, 4), "lm_head": (7, 8),
    }  # fmt: skip


# --- heads and embeddings that are one weight ---------------------------------------------------------------------


def make_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=20, num_hidden_layers=1, tie_word_embeddings=tied, **sizes)
    return LlamaForCausalLM(config)


def save_llama(folder: Path, tied: bool, base: Path | None = None, **config: Any) -> Tensor:
    """A random adapter of a Llama's embeddings and more, as peft saves it, with weights of the base beside it."""
    base = base or folder.parent / "base"
    make_llama(tied).save_pretrained(base)
    targets = ["embed_tokens", "lm_head", "q_proj"]
    model = LlamaForCausalLM.from_pretrained(base)
    peft = get_peft_model(model, LoraConfig(r=2, **{"target_modules": targets, "init_lora_weights": False, **config}))
    peft.save_pretrained(folder)
    with torch.no_grad():
        return peft.eval()(TOKENS).logits


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_a_head_keep_updates_of_their_own_also_where_the_base_has_one_weight(
    tied: bool, tmp_path: Path
) -> None:
    expected = save_llama(tmp_path / "expert", tied)
    assert set(open_adapter(tmp_path / "expert").frozen) == {"model.embed_tokens.weight", "lm_head.weight"}
    merge_folders([tmp_path / "expert"], "average", tmp_path / "adapter", **QUIET)
    model = PeftModel.from_pretrained(make_llama(tied), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_close(model(TOKENS).logits, expected)
    for form in ("delta", "model"):
        method = read_method("average", space="delta", out__format=form)
        if tied:
            with pytest.raises(UserError, match=r"is one weight with another|are one weight"):
                merge_folders([tmp_path / "expert"], method, tmp_path / form, **QUIET)
        else:
            merge_folders([tmp_path / "expert"], method, tmp_path / form, **QUIET)
    if not tied:
        with torch.no_grad():
            assert_close(LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()(TOKENS).logits, expected)


def test_no_delta_of_an_embedding_is_written_where_nobody_knows_whether_the_head_is_the_same_weight(
    tmp_path: Path,
) -> None:
    save_senses(tmp_path / "expert", base="user/base")
    method = read_method("average", space="delta", out__format="delta")
    with pytest.raises(UserError, match="'embed_tokens.* may be one weight with another in the base user/base"):
        merge_folders([tmp_path / "expert"], method, tmp_path / "merged", **QUIET)


def test_lora_that_is_one_for_embeddings_and_head_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "expert", tied=True, ensure_weight_tying=True)
    with pytest.raises(UserError, match=r"ensure_weight_tying makes the LoRA of 'model.embed_tokens' that of the out"):
        open_adapter(tmp_path / "expert")


def test_lora_of_embeddings_that_were_resized_is_refused(tmp_path: Path) -> None:
    base = make_llama(tied=True)
    base.save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(22)
    get_peft_model(model, LoraConfig(target_modules=["embed_tokens"])).save_pretrained(tmp_path / "expert")
    with pytest.raises(UserError, match=r"'model.embed_tokens.weight' is \[22, 8\] and the base's vocabulary 20"):
        open_adapter(tmp_path / "expert")


# --- what is refused ----------------------------------------------------------------------------------------------


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Change one tensor of a file."""
    return lambda tensors: tensors | {PREFIX + name: change(tensors[PREFIX + name]).contiguous()}


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): x for name, x in tensors.items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("image.lora_B.weight", lambda x: x.repeat(1, 1, 1, 2)), r"'image': only linear layers, .* \[3, 3, 1, 2]"),
        (put("image.lora_B.weight", lambda x: x.flatten(1)), r"'image': only linear.*lora_B.weight \[3, 3\]"),
        (put("image.lora_A.weight", lambda x: x[None, None]), r"'image': only linear.* \[1, 1, 3, 1, 3, 2\]"),
        (put("image.lora_A.weight", lambda x: x[:2]), r"'image': the config gives rank 3.*lora_A \[2, 1, 3, 2\]"),
        (put("image.lora_B.weight", lambda x: x[:, :1]), "'image': it is a convolution of 3 groups, whose LoRA is"),
        (put("embed_tokens.lora_embedding_A", lambda x: x.T), r"'embed_tokens': the config gives rank 3.* \[7, 3\]"),
        (put("embed_tokens.lora_embedding_A", lambda x: x[..., None]), r"'embed_tokens': only linear.* \[3, 7, 1\]"),
        (rename("lora_embedding_B", "lora_B.weight"), r"'embed_tokens': only linear.*lora_embedding_A .*lora_B.weight"),
        (rename("lora_embedding_B", "lora_embedding_C"), "'embed_tokens': it has lora_embedding_A but no lora_embedd"),
        (rename("lora_embedding_", "lora_embedding_x_"), "lora_embedding_x_A and 1 more are neither lora_A"),
    ],
)  # fmt: skip
def test_tensors_of_no_layer_are_refused_with_one_message(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str, tmp_path: Path
) -> None:
    save_senses(tmp_path / "expert")
    rewrite_tensors(tmp_path / "expert", change)
    with pytest.raises(UserError, match=told):
        open_adapter(tmp_path / "expert")


@pytest.mark.parametrize("module", ["embed_tokens", "image"])
def test_a_magnitude_has_the_shape_of_its_layer(module: str, tmp_path: Path) -> None:
    save_senses(tmp_path / "expert", use_dora=True)
    rewrite_tensors(tmp_path / "expert", put(f"{module}.lora_magnitude_vector", lambda x: x.flatten()[None]))
    with pytest.raises(UserError, match=f"'{module}': lora_magnitude_vector must have shape"):
        open_adapter(tmp_path / "expert")


def test_lora_of_a_grouped_convolution_is_refused(tmp_path: Path) -> None:
    model = nn.ModuleDict({"grouped": nn.Conv2d(4, 6, 3, groups=2)})
    get_peft_model(model, LoraConfig(r=4, target_modules=["grouped"])).save_pretrained(tmp_path / "expert")
    with pytest.raises(UserError, match="'grouped': it is a convolution of 2 groups, whose LoRA is no update"):
        open_adapter(tmp_path / "expert")


def test_experts_whose_layers_are_of_other_kinds_or_sizes_are_refused(tmp_path: Path) -> None:
    for name, layer in {"a": nn.Conv2d(2, 5, 2), "b": nn.Linear(8, 5), "c": nn.Conv1d(2, 5, 2)}.items():
        model = get_peft_model(nn.ModuleDict({"x": layer}), LoraConfig(r=1, target_modules=["x"]))
        model.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    for name in "bc":
        (tmp_path / name / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="'b' has kind of module 'x' linear layer, expert 'a' conv.* 2 x 2$"):
        merge_folders([tmp_path / "a", tmp_path / "b"], SUM, tmp_path / "merged", **QUIET)
    with pytest.raises(UserError, match="expert 'c' has shape of module 'x' 5 x 4, expert 'a' 5 x 8"):
        merge_folders([tmp_path / "a", tmp_path / "c"], SUM, tmp_path / "merged", **QUIET)


@pytest.mark.parametrize(("module", "kind"), [("embed_tokens", "embedding"), ("sound", "convolution of kernel 3")])
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_servers_get_lora_of_linear_layers_alone(server: str, module: str, kind: str, tmp_path: Path) -> None:
    save_senses(tmp_path / "expert", target_modules=[module, "up"])
    method = read_method("average", out__for=server)
    with pytest.raises(UserError, match=rf"have '{module}' \({kind}\) with LoRA, and {server} serves it of linear"):
        merge_folders([tmp_path / "expert"], method, tmp_path / "merged", **QUIET)
