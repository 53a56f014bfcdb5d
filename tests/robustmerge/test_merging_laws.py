"""What must hold for every merge, on real adapter folders and through real peft.

Covers: one expert and a neutral method give back the same function; what is written loads; the order of experts and
modules, seeds and bytes; that almost nothing is left is said. Scaling, strength and weights: test_scaling_laws.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from robustmerge import method as method_file
from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.merging import merge, write_merged
from robustmerge.method import Method, read_method
from robustmerge.method_parts import Prune
from robustmerge.steps import norms_of
from tests.merge_cases import (
    INPUT,
    QUIET,
    Tiny,
    address_of,
    method_of,
    random_experts,
    read_back,
    save_expert,
    write_expert,
)

NEUTRAL = {
    "factors": Method(name="neutral", strength=1.0),
    "each": Method(name="neutral", product="each", strength=1.0),
    "delta": Method(name="neutral", space="delta", strength=1.0),
    "mean": Method(name="neutral", combine="mean", strength=1.0),
}


def load_merged(folder: Path) -> torch.Tensor:
    """Load with peft, see that no key is missing or left over, and return what the model gives for INPUT."""
    base = Tiny()
    model = PeftModel.from_pretrained(base, folder).eval()
    again = model.load_adapter(folder, adapter_name="again")
    assert not again.unexpected_keys
    assert not [key for key in again.missing_keys if "again" in key]
    with torch.no_grad():
        return model(INPUT)


# --- one expert, a neutral method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("neutral", NEUTRAL)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.q": 5, "v": 2}},
        {"alpha_pattern": {"layers.1.q": 11}},
        {"rank_pattern": {"0.v": 5}, "alpha_pattern": {"v": 1}, "use_rslora": True},
        {"modules_to_save": ["projector"]},
        {"target_modules": r".*\.layers\.0\.q|layers\.\d\.q"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5, "layers_to_transform": [1], "layers_pattern": "layers"},
        {"init_lora_weights": "mica"},
    ],
    ids=lambda config: "+".join(config) or "plain",
)
def test_one_expert_and_a_neutral_method_give_back_the_same_function(
    config: dict, neutral: str, tmp_path: Path
) -> None:
    expected = save_expert(tmp_path / "expert", **config)
    write_merged(tmp_path / "merged", NEUTRAL[neutral], {"expert": tmp_path / "expert"}, **QUIET)
    torch.testing.assert_close(load_merged(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    written = json.loads((tmp_path / "merged" / CONFIG).read_text())
    assert written["lora_alpha"] == written["r"]
    assert written["alpha_pattern"] == written["rank_pattern"]
    assert isinstance(written["target_modules"], str) or written["target_modules"] == sorted(written["target_modules"])


def test_several_experts_load_without_missing_or_unexpected_keys_and_average_the_projector(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        save_expert(tmp_path / name, seed, modules_to_save=["projector"], rank_pattern={"0.q": 4})
    experts = {name: tmp_path / name for name in "abc"}
    for method in (method_of("robustmerge", prune__density=0.6), method_of("task_arithmetic", space="delta")):
        record = write_merged(tmp_path / method.name, method, experts, **QUIET)
        assert (record["modules"], record["extras"]) == (4, 2)
        assert torch.isfinite(load_merged(tmp_path / method.name)).all()
        mean = sum(read_back(path)["projector.weight"] for path in experts.values()) / 3
        torch.testing.assert_close(read_back(tmp_path / method.name)["projector.weight"], mean)


def test_the_sum_in_delta_space_is_the_sum_of_the_updates(tmp_path: Path) -> None:
    """Plain, rsLoRA and other alphas together: what is added are the updates, not the factors."""
    configs = {"a": {}, "b": {"use_rslora": True}, "c": {"lora_alpha": 20, "r": 5}}
    experts = {name: tmp_path / name for name in configs}
    updates = []
    for seed, (name, config) in enumerate(configs.items()):
        save_expert(experts[name], seed, **config)
        loaded = PeftModel.from_pretrained(Tiny(), experts[name])
        updates.append(loaded.base_model.model.layers[1]["v"].get_delta_weight("default"))
    method = method_of("task_arithmetic", space="delta", strength=0.5, weights={"c": -2.0})
    write_merged(tmp_path / "merged", method, experts, **QUIET)
    expected = 0.5 * (updates[0] + updates[1] - 2 * updates[2])
    torch.testing.assert_close(open_adapter(tmp_path / "merged").pair("layers.1.v").delta(), expected)


# --- order, seeds, bytes ------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["robustmerge", "task_arithmetic"])
def test_order_of_experts_and_modules_does_not_change_a_byte(name: str, tmp_path: Path) -> None:
    experts = random_experts("abcd")
    there = {k: write_expert(tmp_path / "there" / k, p) for k, p in experts.items()}
    back = {
        k: write_expert(tmp_path / "back" / k, dict(reversed(experts[k].items())), bin_file=True)
        for k in reversed(experts)
    }
    method = method_of(name, **({"prune__density": 0.5} if name == "robustmerge" else {}))
    for experts_of, out in ((there, "one"), (back, "two"), (there, "three")):
        write_merged(tmp_path / out, method, experts_of, **QUIET)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "three")
    assert set(bytes_of(tmp_path / "one")) == {WEIGHTS, CONFIG, "README.md"}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), others=st.permutations("bcd"))
def test_random_pruning_depends_on_seed_task_and_module_only(seed: int, others: list[str]) -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts("abcd").items()}
    method = Method(name="m", strength=1.0, prune=Prune("random", 0.5), product="each", seed=seed)
    alone = merge_pairs({"a": pairs["a"]}, method, "layers.0.q")
    among = merge_pairs({name: pairs[name] for name in ["a", *others[:2]]}, method, "layers.0.q")
    assert torch.equal(among.A[:4], alone.A)
    assert not torch.equal(merge_pairs({"a": pairs["a"]}, method, "layers.1.q").A, alone.A)
    assert not torch.equal(merge_pairs({"b": pairs["a"]}, method, "layers.0.q").A, alone.A)


def test_a_complete_merge_is_not_made_again_and_strength_given_or_default_is_one_address(tmp_path: Path) -> None:
    experts = {k: write_expert(tmp_path / k, p) for k, p in random_experts().items()}
    method = method_of("robustmerge", prune__density=0.6)
    address = address_of(tmp_path, method, experts)
    assert address == address_of(tmp_path, method_of("robustmerge", prune__density=0.6, strength=2.0), experts)
    assert address.path != address_of(tmp_path, method_of("robustmerge", prune__density=0.5), experts).path
    said: list[str] = []
    merge(address, method, experts, said.append)
    assert len(said) == 1
    assert said[0].startswith(
        "RobustMerge: 3 experts merged; 2 modules, rank 4, strength 2 in factors (the update is multiplied by 4), norm "
    )
    before = (address.path / WEIGHTS).stat().st_mtime_ns
    merge(address, method, experts, said.append)
    assert (address.path / WEIGHTS).stat().st_mtime_ns == before
    assert len(said) == 1


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path) -> None:
    experts = {k: write_expert(tmp_path / k, p) for k, p in random_experts().items()}
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / f".{WEIGHTS}.1.part").write_bytes(b"cut")
    write_merged(tmp_path / "merged", NEUTRAL["factors"], experts, **QUIET)
    assert set(bytes_of(tmp_path / "merged")) == {WEIGHTS, CONFIG, "README.md"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_experts_dtype_is_kept_on_request_and_float32_otherwise(dtype: torch.dtype, tmp_path: Path) -> None:
    pairs = {m: LoraPair(p.A.to(dtype), p.B.to(dtype)) for m, p in random_experts("a")["a"].items()}
    experts = {"a": write_expert(tmp_path / "a", pairs)}
    for choice, expected in (("experts", dtype), ("float32", torch.float32)):
        method = Method(name="neutral", strength=1.0, out=method_file.Out(dtype=choice))
        write_merged(tmp_path / choice, method, experts, **QUIET)
        tensors = read_back(tmp_path / choice)
        assert {x.dtype for x in tensors.values()} == {expected}
        assert torch.equal(tensors["layers.0.q.lora_B.weight"].to(dtype), pairs["layers.0.q"].B)


# --- what is said ------------------------------------------------------------------------------------------------


def test_a_merge_that_leaves_almost_nothing_says_so(tmp_path: Path) -> None:
    """One threshold over A and B of the whole model prunes a B that is much smaller than A."""
    experts = random_experts()
    folders = {
        name: write_expert(tmp_path / name, {m: LoraPair(p.A, 1e-4 * p.B) for m, p in modules.items()})
        for name, modules in experts.items()
    }
    said: list[str] = []
    write_merged(tmp_path / "merged", method_of("ties", prune__scope="model"), folders, said.append)
    write_merged(tmp_path / "better", method_of("ties"), folders, said.append)
    assert "so almost nothing is left of the updates: one threshold covers A and B" in said[0]
    assert "nothing is left" not in said[1]


def test_experts_whose_A_and_B_cancel_are_measured_exactly_and_told_where_these_are_changed_apart(
    tmp_path: Path,
) -> None:
    """What a conversion from PiSSA writes: [B, -B_0] [A; A_0], two large terms whose difference is the update."""
    torch.manual_seed(0)
    A, B = torch.randn(4, 24), torch.randn(16, 4)
    folders = {}
    for name in ("one", "two"):
        moved = LoraPair(A + 3e-4 * torch.randn_like(A), B + 3e-4 * torch.randn_like(B))
        pair = LoraPair(torch.cat([moved.A, A]), torch.cat([moved.B, -B], dim=1))
        folders[name] = write_expert(tmp_path / name, {"layers.0.q_proj": pair})
        exact = float((pair.B.double() @ pair.A.double()).norm())
        assert norms_of([pair]).item() == pytest.approx(exact, rel=1e-6)
    said: list[str] = []
    for index, method in enumerate([read_method("ties"), read_method("ties", space="knots"), read_method("tsv_m")]):
        write_merged(tmp_path / str(index), method, folders, said.append)
    assert "so A and B of one, two cancel, as after a conversion from PiSSA" in said[0]
    assert not any("cancel" in line for line in said[1:])
