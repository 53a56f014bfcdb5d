"""A LoRA out of a fully fine-tuned checkpoint: the tuned model where LoRA can hold it, a stated error where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from robustmerge.cli.program import main
from robustmerge.extract import extract
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.low_rank import approximate, approximate_randomly
from robustmerge.merging import merge_folders
from robustmerge.stage.settings import ConfigError, UserError
from tests.merge_cases import QUIET

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOKENS = torch.arange(12).reshape(2, 6)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Q = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, torch.Tensor]


def save_llama(folder: Path, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, **sizes, **config)).eval()
    model.save_pretrained(folder)
    return model


def add_low_rank(tensors: Tensors, rank: int = 3, ends: tuple[str, ...] = LINEAR, seed: int = 1) -> Tensors:
    """The tensors, to those of linear layers an update of this rank added."""
    draw = torch.Generator().manual_seed(seed)
    changed = dict(tensors)
    for name, x in tensors.items():
        if name.removesuffix(".weight").endswith(ends):
            d_out, d_in = x.shape
            changed[name] = x + 0.1 * torch.randn(d_out, rank, generator=draw) @ torch.randn(rank, d_in, generator=draw)
    return changed


def tune(model: PreTrainedModel, folder: Path, change: Callable[[Tensors], Tensors], **saving: Any) -> torch.Tensor:
    """Change the tensors of a model, save it as a checkpoint, and return its logits."""
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(change(tensors))
    model.save_pretrained(folder, **saving)
    with torch.no_grad():
        answer = model(TOKENS).logits
    model.load_state_dict(tensors)
    return answer


def logits_of(base: PreTrainedModel, adapter: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(base, adapter)(TOKENS).logits


# --- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "saving", "options"),
    [
        ({}, {}, {}),
        ({"tie_word_embeddings": True}, {"max_shard_size": "5KB"}, {}),
        ({}, {}, {"exact_up_to": 0, "workers": 3}),
    ],
    ids=["whole", "tied, in parts", "randomised"],
)
def test_a_tuning_of_low_rank_comes_back_exactly(config: Any, saving: Any, options: Any, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", **config)
    tuned = tune(base, tmp_path / "tuned", add_low_rank, **saving)
    record = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", rank=4, **options, **QUIET)
    torch.testing.assert_close(logits_of(base, tmp_path / "lora"), tuned, rtol=1e-5, atol=1e-5)
    assert (len(record["modules"]), record["left_out"]) == (14, {})
    assert record["retained"] == pytest.approx(1, abs=1e-6)
    assert {module["best"] for module in record["modules"].values()} == {"exact_up_to" not in options}
    written = json.loads((tmp_path / "lora" / CONFIG).read_text())
    assert (written["r"], written["lora_alpha"], written["task_type"]) == (4, 4, "CAUSAL_LM")
    assert written["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_checkpoint_in_torchs_format_and_half_precision_is_read(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    tune(base, tmp_path / "tuned", add_low_rank)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "one", rank=3, **QUIET)
    torch.save(load_file(tmp_path / "tuned" / "model.safetensors"), tmp_path / "tuned" / "pytorch_model.bin")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "two", rank=3, dtype="bfloat16", **QUIET)
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert all(torch.equal(two[name], x.bfloat16()) for name, x in one.items())


def test_layers_that_keep_their_weights_transposed_come_back_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=1, n_head=2)).eval()
    base.save_pretrained(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", lambda tensors: add_low_rank(tensors, 2, ("c_attn", "c_fc", "c_proj")))
    record = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", rank=2, **QUIET)
    torch.testing.assert_close(logits_of(base, tmp_path / "lora"), tuned, rtol=1e-5, atol=1e-5)
    assert record["retained"] == pytest.approx(1)


def test_what_was_extracted_merges_with_other_experts(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    for seed, name in enumerate("ab"):
        tune(base, tmp_path / f"tuned {name}", lambda tensors, seed=seed: add_low_rank(tensors, seed=seed))
        extract(tmp_path / "base", tmp_path / f"tuned {name}", tmp_path / name, rank=3, **QUIET)
    merge_folders([tmp_path / "a", tmp_path / "b"], "ties", tmp_path / "merged", **QUIET)
    assert open_adapter(tmp_path / "merged").shapes == open_adapter(tmp_path / "a").shapes


# --- what cannot come back is said --------------------------------------------------------------------------------


def test_the_error_is_the_norm_of_the_dropped_singular_values(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    tune(base, tmp_path / "tuned", lambda tensors: add_low_rank(tensors, 16))
    record = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", rank=5, **QUIET)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    adapter, errors, norms = open_adapter(tmp_path / "lora"), 0.0, 0.0
    for module, said in record["modules"].items():
        change = after[f"{module}.weight"].double() - before[f"{module}.weight"].double()
        s = torch.linalg.svdvals(change)
        assert said["error"] == pytest.approx(float(s[5:].norm()))
        assert said["error"] == pytest.approx(float((change - adapter.pair(module).delta()).norm()), rel=1e-5)
        assert said["retained"] == pytest.approx(1 - float(s[5:].square().sum() / s.square().sum()))
        errors, norms = errors + said["error"] ** 2, norms + said["norm"] ** 2
    assert record["retained"] == pytest.approx(1 - errors / norms)
    assert record["error"] == pytest.approx(errors**0.5)


def test_a_randomised_approximation_states_its_own_error_and_is_close_to_the_best() -> None:
    draw = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 60, generator=draw)).Q for n in (90, 70))
    dense = (U * 0.9 ** torch.arange(60)) @ V.T
    near, best = approximate_randomly(dense, 8, draw), approximate(dense, 8)
    stated = near.squared_error**0.5
    assert stated == pytest.approx(float((dense - near.pair.delta()).norm()), rel=1e-4)
    assert best.squared_error**0.5 - 1e-6 <= stated <= 1.001 * best.squared_error**0.5


def test_what_changed_and_is_no_lora_is_listed_and_printed(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")

    def change(tensors: Tensors) -> Tensors:
        heads = {name: 1.1 * tensors[name] for name in ("model.norm.weight", "lm_head.weight")}
        embeddings = {"model.embed_tokens.weight": 1.2 * tensors["model.embed_tokens.weight"]}
        return add_low_rank(tensors, ends=("q_proj", "v_proj")) | heads | embeddings

    tune(base, tmp_path / "tuned", change)
    said: list[str] = []
    record = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", 3, say=said.append)
    changes = {"lm_head.weight": 0.1, "model.embed_tokens.weight": 0.2, "model.norm.weight": 0.1}
    assert record["left_out"] == pytest.approx(changes, rel=1e-5)
    assert "warning: 3 tensors changed and are not in the adapter" in said[1]
    assert said[2:] == [f"  {name}: {share:.2%}" for name, share in changes.items()]
    assert json.loads((tmp_path / "lora" / "manifest.json").read_text())["record"]["left_out"] == record["left_out"]
    asked = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "head", 3, ["q_proj", "lm_head"], **QUIET)
    assert {module.rpartition(".")[2] for module in asked["modules"]} == {"q_proj", "lm_head"}
    assert "model.layers.1.self_attn.v_proj.weight" in asked["left_out"]


def test_the_same_input_gives_the_same_bytes_and_is_not_extracted_again(tmp_path: Path) -> None:
    tune(save_llama(tmp_path / "base"), tmp_path / "tuned", lambda tensors: add_low_rank(tensors, 16))
    folders = tmp_path / "base", tmp_path / "tuned"
    for out, options in {"one": {}, "two": {"workers": 3}}.items():
        extract(*folders, tmp_path / out, 4, exact_up_to=20, **options, **QUIET)
    files = [{path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two")]
    assert files[0].keys() == files[1].keys() == {WEIGHTS, CONFIG, "README.md", "manifest.json"}
    assert all(files[0][name] == files[1][name] for name in files[0] if name != "manifest.json")
    extract(*folders, tmp_path / "one", 4, exact_up_to=20, **QUIET)
    assert (tmp_path / "one" / "manifest.json").read_bytes() == files[0]["manifest.json"]
    with pytest.raises(UserError, match="made of other models or settings"):
        extract(*folders, tmp_path / "one", 5, **QUIET)


# --- refusals -----------------------------------------------------------------------------------------------------


def with_tensor(name: str, tensor: torch.Tensor | None) -> Callable[[Tensors], Tensors]:
    """A change: one tensor more, another one, or (None) one less."""
    return lambda tensors: {key: x for key, x in (tensors | {name: tensor}).items() if x is not None}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda tensors: tensors, {}, "nothing differs between"),
        (with_tensor("model.norm.weight", torch.zeros(16)), {}, "linear layers can hold, only 'model.norm.weight'"),
        (with_tensor(Q, None), {}, f"'{Q}' is in .*base, but not in"),
        (with_tensor("model.more", torch.zeros(2)), {}, "'model.more' is in .*tuned, but not in .*base"),
        (with_tensor("model.embed_tokens.weight", torch.zeros(41, 16)), {}, r"\[40, 16\] in .*vocabulary was resized"),
        (with_tensor(Q, torch.full((16, 16), torch.nan)), {}, f"'{Q}' holds NaN or infinity in .*tuned"),
        (with_tensor(Q, torch.ones(16, 16, dtype=torch.int8)), {}, "quantised weights cannot be subtracted"),
        (
            with_tensor(Q, torch.full((16, 16), 1e12)),
            {"dtype": "float16"},
            "fit torch.float16; take dtype='float32'",
        ),
        (add_low_rank, {"modules": ["q_prij"]}, "no linear layer is named 'q_prij'.*did you mean 'q_proj'"),
        (add_low_rank, {"modules": ["embed_tokens"]}, "no linear layer is named 'embed_tokens'"),
    ],
    ids=["same", "norm", "less", "more", "shape", "nan", "int8", "overflow", "module", "embeddings"],
)
def test_what_cannot_be_extracted_is_refused_and_nothing_is_written(
    change: Callable[[Tensors], Tensors], options: Any, message: str, tmp_path: Path
) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "tuned").mkdir()
    save_file(change(load_file(tmp_path / "base" / "model.safetensors")), tmp_path / "tuned" / "model.safetensors")
    with pytest.raises(UserError, match=message):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", 3, **options, **QUIET)
    assert not (tmp_path / "lora").exists()


def test_settings_are_checked_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0 .*\n.*modules must be.*\n.*dtype 'experts'"):
        extract(tmp_path, tmp_path, tmp_path / "out", 0, modules=[], dtype="experts")


def test_a_tied_head_is_no_module_of_its_own(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", tie_word_embeddings=True)
    tune(base, tmp_path / "tuned", add_low_rank)
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    record = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", 3, **QUIET)
    assert record["left_out"] == {}
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    with pytest.raises(UserError, match="'lm_head.weight' is in .*tuned, but not in"):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "other", 3, **QUIET)


def test_the_command_writes_the_same_bytes_as_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_llama(tmp_path / "base")
    tune(model, tmp_path / "tuned", add_low_rank)
    base, tuned = str(tmp_path / "base"), str(tmp_path / "tuned")
    extract(base, tuned, tmp_path / "by function", 2, ["q_proj"])
    main(["extract", base, tuned, "-r", "2", "-o", str(tmp_path / "by command"), "--modules", "q_proj"])
    files = [tmp_path / by / WEIGHTS for by in ("by function", "by command")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert f"written to {tmp_path / 'by command'}" in capsys.readouterr().out
