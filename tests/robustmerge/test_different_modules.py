"""Experts that adapt different modules: what an expert lacks is a zero update of it, in memory and in folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import AnyMethod, FunctionMethod, Method, read_method
from robustmerge.stage.settings import UserError
from tests.law_cases import EVERYWHERE, MODULES, Experts, assert_same, draw, dropping, every_method, merge
from tests.merge_cases import QUIET, Tiny, random_experts, save_expert, write_expert

LINEAR = {
    f"{name}-{space}": read_method(name, weights={"a": 0.5, "c": -2.0}, **changes)
    for name in ("task_arithmetic", "average")
    for space, changes in {
        "each": {"product": "each"}, **{space: {"space": space} for space in ("factors", "delta", "knots", "core")}
    }.items()
}  # fmt: skip


def without(experts: Experts, expert: str, module: str) -> Experts:
    """The experts, of which one lacks a module."""
    return {
        name: {m: p for m, p in modules.items() if (name, m) != (expert, module)} for name, modules in experts.items()
    }


def with_zeros(experts: Experts, expert: str, module: str, A: float) -> Experts:
    """The experts, of which one has zeros as B, and A times a factor."""
    pair = experts[expert][module]
    return {**experts, expert: {**experts[expert], module: LoraPair(pair.A * A, pair.B * 0)}}


def is_over_core(method: AnyMethod) -> bool:
    return isinstance(method, Method) and method.space == "core" and not method.is_linear


def is_over_model(method: AnyMethod) -> bool:
    return isinstance(method, Method) and method.needs_whole_model


# --- zero updates, in memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, m in LINEAR.items() if not m.multiplies_factors])
def test_for_a_linear_method_an_absent_module_is_a_B_of_zeros(name: str) -> None:
    experts = draw(0)
    expected = merge(with_zeros(experts, "b", MODULES[1], A=1.0), LINEAR[name])
    assert_same(merge(without(experts, "b", MODULES[1]), LINEAR[name]), expected)


@every_method
def test_for_any_method_an_absent_module_is_an_A_and_a_B_of_zeros(name: str) -> None:
    """Where A and B are summed apart, a B of zeros alone leaves the products of its A with the B of the others.

    Left out are thresholds over the model, which are over what an expert has, and elections in core space, whose
    coordinates grow with the A and B that there are.
    """
    method, experts = dropping(EVERYWHERE[name]), draw(1)
    if not is_over_model(method) and not is_over_core(method):
        expected = merge(with_zeros(experts, "b", MODULES[1], A=0.0), method)
        assert_same(merge(without(experts, "b", MODULES[1]), method), expected)
    assert_same(  # what others have is merged as ever
        {MODULES[0]: merge(without(experts, "b", MODULES[1]), method)[MODULES[0]]},
        {} if is_over_model(method) else {MODULES[0]: merge(experts, method)[MODULES[0]]},
    )


@every_method
def test_experts_without_any_module_in_common_merge_in_any_order(name: str) -> None:
    experts = {name: {m: p for m, p in modules.items() if (name == "a") == (m == MODULES[0])}
               for name, modules in draw(2).items()}  # fmt: skip
    method = dropping(EVERYWHERE[name])
    there, back = merge(experts, method), merge(dict(reversed(experts.items())), method)
    assert list(there) == list(MODULES) and all(x.any() for x in there.values())
    assert all(torch.equal(there[m], back[m]) for m in MODULES)


@pytest.mark.parametrize("space", ["delta", "factors", "knots", "core"])
def test_a_threshold_over_the_model_is_over_the_modules_that_an_expert_has(space: str) -> None:
    """The modules of two experts that share none are merged as each expert alone would be."""
    experts = draw(3, "ab", (3, 3))
    apart = {"a": {MODULES[0]: experts["a"][MODULES[0]]}, "b": {MODULES[1]: experts["b"][MODULES[1]]}}
    method = read_method("ties", space=space, prune__scope="model", prune__density=0.3)
    merged = merge(apart, method)
    for name, module in zip("ab", MODULES, strict=True):
        assert_same({module: merged[module]}, merge({name: apart[name]}, method))


def test_a_mean_divides_by_all_experts_and_an_election_only_by_those_that_have_a_sign() -> None:
    experts = without(draw(4, "ab", (3, 3)), "b", MODULES[1])
    alone = experts["a"][MODULES[1]].delta()
    assert_same(merge(experts, read_method("average", space="delta")), {MODULES[1]: alone / 2})
    elected = read_method("ties", space="delta", strength=1.0, prune={"rule": "none", "density": 1.0})
    assert_same(merge(experts, elected), {MODULES[1]: alone})


def test_an_absent_expert_takes_no_part_in_normalisation_and_in_the_rank_of_a_sum() -> None:
    experts = without(draw(5), "b", MODULES[1])
    method = read_method("robustmerge", product="each", scale__empty_row="drop")
    merged = merge_models(experts, method)[MODULES[1]]
    others = {name: experts[name] for name in "ac"}
    assert_same({"": merged.delta()}, {"": merge(others, method)[MODULES[1]]})
    assert merged.rank == 6


def test_functions_get_zeros_of_the_others_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stacking.py").write_text(
        "import torch\nfrom robustmerge.formats.adapter import LoraPair\n"
        "def merge(pairs):\n"
        "    A, B = (torch.stack([getattr(pair, part) for pair in pairs]).sum(0) for part in 'AB')\n"
        "    return B @ A\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = FunctionMethod("stacking", "stacking.merge")
    experts = without(draw(6), "b", MODULES[1])
    A, B = (sum(getattr(experts[name][MODULES[1]], part) for name in "ac") for part in "AB")
    assert_same({"": merge_models(experts, method)[MODULES[1]]}, {"": B @ A})


def test_strict_targets_refuse_in_memory_what_union_merges() -> None:
    experts = without(draw(7), "b", MODULES[1])
    with pytest.raises(UserError, match="only one of the experts 'a' and 'b' has module 'layers.1.v'"):
        merge_models(experts, read_method("ties", targets="strict"))
    with pytest.raises(UserError, match=r"unknown targets 'some'; choose one of strict, union \(merge.targets\)"):
        read_method("ties", targets="some")


def test_shapes_are_compared_among_the_experts_that_have_a_module() -> None:
    experts = without(draw(8, "abc"), "a", MODULES[1])
    experts["c"][MODULES[1]] = LoraPair(torch.zeros(3, 18), torch.zeros(29, 3))
    with pytest.raises(UserError, match="of the experts 'b' and 'c' has shapes 28 x 18 and 29 x 18"):
        merge_models(experts, read_method("ties"))


# --- folders -----------------------------------------------------------------------------------------------------

TARGETS = {"a": ["q", "v"], "b": ["q"], "c": r".*layers\.0\.v"}  # whole, by kind, by expression


def save_three(folder: Path, **config: object) -> dict[str, Path]:
    for seed, (name, targets) in enumerate(TARGETS.items()):
        save_expert(folder / name, seed, target_modules=targets, **config)
    return {name: folder / name for name in TARGETS}


@pytest.mark.parametrize("kind", ["adapter", "delta", "model"])
def test_folders_of_different_modules_merge_to_the_sum_of_their_updates(kind: str, tmp_path: Path) -> None:
    experts = save_three(tmp_path, modules_to_save=["projector"])
    weights = Tiny().state_dict()
    out = {"format": kind}
    if kind == "model":
        (tmp_path / "base").mkdir()
        save_file(weights, tmp_path / "base" / "model.safetensors")
        (tmp_path / "base" / "config.json").write_text("{}")
        out["base"] = str(tmp_path / "base")
    said: list[str] = []
    method = read_method("task_arithmetic", space="delta", strength=1.0, out=out)
    record = write_merged(tmp_path / "merged", method, experts, said.append)
    assert record["modules"] == 4
    assert (
        "zero updates where an expert lacks a module: b 2 of 4 (layers.0.v, ...), c 3 of 4 (layers.0.q, ...)" in said[0]
    )
    expected = {name: x.clone() for name, x in weights.items()}
    for folder in experts.values():
        adapter = open_adapter(folder)
        for module in adapter.modules:
            expected[f"{module}.weight"] += adapter.pair(module).delta()
    changed = {name for name in expected if name.startswith("layers.") and name.endswith("weight")}
    found = read_weights(tmp_path / "merged", kind, weights)
    for name in changed:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    mean = sum(open_adapter(folder).extra("projector.weight") for folder in experts.values()) / 3
    torch.testing.assert_close(found["projector.weight"], mean)


def read_weights(folder: Path, kind: str, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the base with what was written."""
    if kind == "adapter":
        model = PeftModel.from_pretrained(Tiny(), folder)
        assert len(open_adapter(folder).modules) == 4
        return dict(model.merge_and_unload().state_dict())
    if kind == "model":
        return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}
    found = {name: x.clone() for name, x in base.items()}
    for name, x in load_file(folder / "delta.safetensors").items():
        how, _, parameter = name.partition(".")
        found[parameter] = found[parameter] + x if how == "add" else x
    return found


def test_a_module_that_an_expert_s_own_targets_leave_out_is_refused_beside_others(tmp_path: Path) -> None:
    """A tensor under a wrong name: peft would not load it, and the merge would give a module to the base without it."""
    experts = save_three(tmp_path)
    file = experts["a"] / "adapter_model.safetensors"
    save_file({name.replace(".v.", ".k."): x for name, x in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"expert 'a' has LoRA on 'layers.0.k', which its target_modules \(q, v\) do not"
    ):
        merge_folders(experts, read_method("average"), tmp_path / "merged", **QUIET)


def test_strict_targets_refuse_folders_as_they_always_did_and_are_no_other_merge(tmp_path: Path) -> None:
    experts = save_three(tmp_path)
    with pytest.raises(UserError) as refused:
        merge_folders(experts, read_method("ties", targets="strict"), tmp_path / "strict", **QUIET)
    assert str(refused.value).splitlines() == [
        "expert 'b' lacks module 'layers.0.v' and 1 more",
        "expert 'c' lacks module 'layers.0.q' and 2 more",
    ]
    same = random_experts("ab")
    folders = {name: write_expert(tmp_path / f"same_{name}", pairs) for name, pairs in same.items()}
    for targets in ("strict", "union"):
        merge_folders(folders, read_method("ties", targets=targets), tmp_path / "same", **QUIET)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes lora_B's bias for a damaged matrix
def test_a_bias_of_an_absent_module_is_zero_and_a_magnitude_of_one_is_refused(tmp_path: Path) -> None:
    biased = save_three(tmp_path / "bias", lora_bias=True)
    write_merged(tmp_path / "merged", read_method("average", space="delta"), biased, **QUIET)
    merged, a, c = (open_adapter(folder) for folder in (tmp_path / "merged", biased["a"], biased["c"]))
    torch.testing.assert_close(merged.bias("layers.0.v"), (a.bias("layers.0.v") + c.bias("layers.0.v")) / 3)
    with pytest.raises(UserError, match="'b' lacks module 'layers.0.v' and 1 more; an absent module is no zero update"):
        write_merged(tmp_path / "dora", read_method("ties"), save_three(tmp_path / "d", use_dora=True), **QUIET)


def test_ranks_are_compared_module_by_module_among_those_that_have_it(tmp_path: Path) -> None:
    wide, narrow = random_experts("ab", rank=4)["a"], random_experts("ab", rank=2)["b"]
    (one, first), (two, second) = wide.items()
    experts = {
        "a": write_expert(tmp_path / "a", {one: first, two: narrow[two]}, rank_pattern={two: 2}),
        "b": write_expert(tmp_path / "b", {two: narrow[two]}),
    }
    write_merged(tmp_path / "merged", read_method("ties"), experts, **QUIET)
    experts["b"] = write_expert(tmp_path / "c", {two: second})
    with pytest.raises(UserError, match="expert 'b' has rank in module 'layers.1.q' 4, expert 'a' 2; in factor space"):
        write_merged(tmp_path / "refused", read_method("ties"), experts, **QUIET)


def test_experts_that_share_no_module_merge_with_a_warning_and_load(tmp_path: Path) -> None:
    for seed, layer in enumerate((0, 1)):
        save_expert(tmp_path / f"{layer}", seed, layers_to_transform=[layer], layers_pattern="layers")
    said: list[str] = []
    experts = {name: tmp_path / name for name in "01"}
    write_merged(tmp_path / "merged", read_method("task_arithmetic", strength=1.0), experts, said.append)
    assert "so no module of 0, 1 is adapted by another expert" in said[0]
    model = PeftModel.from_pretrained(Tiny(), tmp_path / "merged")
    for layer, name in enumerate("01"):
        delta = open_adapter(experts[name]).pair(f"layers.{layer}.q").delta()
        torch.testing.assert_close(model.base_model.model.layers[layer]["q"].get_delta_weight("default"), delta)
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {WEIGHTS, CONFIG, "README.md"}


def test_names_of_before_are_brought_to_those_of_today_also_of_other_layers_of_one_stack(tmp_path: Path) -> None:
    today, before = "model.language_model.layers.0.q_proj", "language_model.model.layers.1.q_proj"
    experts = {
        name: write_expert(tmp_path / name, random_experts(name, (module,))[name])
        for name, module in {"a": today, "b": before}.items()
    }
    write_merged(tmp_path / "merged", read_method("task_arithmetic"), experts, **QUIET)
    assert open_adapter(tmp_path / "merged").modules == (today, today.replace(".0.", ".1."))
