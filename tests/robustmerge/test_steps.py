"""The steps before and after a rule: what their authors' own code makes of the same experts, and their laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustmerge.algebra import merge_models, merge_pairs
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.low_rank import singular_values
from robustmerge.merging import merge_folders
from robustmerge.method import AnyMethod, FunctionMethod, list_methods, read_method
from robustmerge.module import Module
from robustmerge.stage.address import settings_in_identity
from robustmerge.stage.settings import ConfigError, UserError
from robustmerge.steps import SPECTRUM, calibrate, equalize, norms_of, prepare
from tests.law_cases import EVERYWHERE, assert_same, dense, draw, dropping, merge
from tests.merge_cases import QUIET, Case, assert_within, cases, save_expert

BEFORE: dict[str, dict[str, Any]] = {
    "norm": {"equalize__rule": "norm"},
    "half": {"equalize__rule": "norm", "equalize__gamma": 0.5},
    "cap": {"equalize__rule": "cap", "equalize__deviations": 1.0},
    "pico": {"calibrate__rule": "pico", "calibrate__norm": "none"},
    "pico_experts": {"calibrate__rule": "pico", "calibrate__norm": "experts"},
    "both": {"equalize__rule": "norm", "calibrate__rule": "pico", "calibrate__norm": "none"},
}
AFTER: dict[str, dict[str, Any]] = {
    "pico_merge": {"calibrate__rule": "pico"},
    "svc": {"spectrum__rule": "svc"},
    "boost": {"spectrum__rule": "boost", "spectrum__beta": 0.4},
    "power": {"spectrum__rule": "power"},
}
STEPS = {**BEFORE, **AFTER}
UNEQUAL = (0.1, 1.0, 30.0)


def module_of(case: Case, name: str) -> Module:
    pairs = [LoraPair(p.A.float(), p.B.float()) for p in (case.pair(expert, name) for expert in case.experts)]
    return Module(name, case.experts, pairs)


def unequal_experts(seed: int = 0) -> dict[str, dict[str, LoraPair]]:
    """Experts whose norms are far from one another."""
    experts = draw(seed)
    return {
        name: {m: LoraPair(p.A, p.B * gain) for m, p in modules.items()}
        for (name, modules), gain in zip(experts.items(), UNEQUAL, strict=True)
    }


def first_module(experts: dict[str, dict[str, LoraPair]]) -> Module:
    name = next(iter(experts["a"]))
    return Module(name, list(experts), [modules[name] for modules in experts.values()])


def with_strength(method: str, strength: float, **changes: Any) -> AnyMethod:
    key = "params__strength" if isinstance(read_method(method), FunctionMethod) else "strength"
    return read_method(method, **{key: strength}, **changes)


# --- authors' code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("pico"), ids=lambda path: path.stem)
def test_pico_equals_its_authors_code(path: Path) -> None:
    case = Case(path)
    half = case.about.get("tolerance_half", case.about["tolerance"])  # B is rounded to the experts' dtype there
    for name in case.modules:
        module = module_of(case, name)
        for output, norm in (("calibrated", "none"), ("calibrated_norm", "experts")):
            step = read_method("average", calibrate__rule="pico", calibrate__norm=norm).calibrate
            for expert, pair in zip(case.experts, calibrate(module, step).pairs, strict=True):
                assert_within(pair.B, case.tensors[f"output.{output}.{expert}.{name}.lora_B"], half, output)
        experts = dict(zip(case.experts, module.pairs, strict=True))
        for output, norm in (("ta_mean", "none"), ("ta_mean_energy", "merge"), ("ta_mean_folder_norm", "experts")):
            tolerance = half if norm == "experts" else case.about["tolerance"]
            changes = {"calibrate__rule": "pico", "calibrate__norm": norm}
            merged = merge_pairs(experts, read_method("average", space="delta", strength=1.0, **changes))
            assert_within(dense(merged), case.tensors[f"output.{output}.{name}.delta"], tolerance, output)


@pytest.mark.parametrize("path", cases("svc"), ids=lambda path: path.stem)
def test_svc_equals_its_authors_code(path: Path) -> None:
    """Their alpha is relative to the strength before; ours to a strength of 1, and the strength comes after."""
    case = Case(path)
    for output, settings in case.about["hyperparameters"]["variants"].items():
        alpha = settings["alpha"] / settings["lambda"]
        method = read_method(
            "task_arithmetic", space="delta", strength=1.0, spectrum__rule="svc", spectrum__alpha=alpha
        )
        for name in case.modules:
            module = module_of(case, name)
            merged = dense(merge_pairs(dict(zip(case.experts, module.pairs, strict=True)), method))
            reference = case.tensors[f"output.{output}.{name}.delta"]
            assert_within(merged, reference, case.about["tolerance"], f"{output} {name}")


@pytest.mark.parametrize("path", cases("subspace_boosting"), ids=lambda path: path.stem)
def test_boosting_equals_its_authors_code_on_the_directions_that_the_merge_has(path: Path) -> None:
    case, compared = Case(path), 0
    for beta in case.about["hyperparameters"]["beta"]:
        method = read_method(
            "task_arithmetic", space="delta", strength=1.0, spectrum__rule="boost", spectrum__beta=beta
        )
        for name in case.modules:
            module = module_of(case, name)
            merged = dense(merge_pairs(dict(zip(case.experts, module.pairs, strict=True)), method))
            for output in ("support_beta", "beta"):
                reference = case.tensors.get(f"output.{output}{beta}.{name}.delta")
                if reference is not None:
                    assert_within(merged, reference, case.about["tolerance"], f"{output}{beta} {name}")
                    assert (merged - reference).norm() <= 2e-4 * reference.norm()
                    compared += 1
    assert compared


def test_all_cases_are_here() -> None:
    assert {name: len(cases(name)) for name in ("pico", "svc", "subspace_boosting")} == {
        "pico": 4, "svc": 4, "subspace_boosting": 5,
    }  # fmt: skip


# --- laws of all steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_methods())
def test_steps_that_do_nothing_are_no_part_of_a_method(name: str) -> None:
    steps = {"equalize": {"rule": "none"}, "calibrate": {"rule": "none"}, "spectrum": {"rule": "none", "power": 0.2}}
    method, plain = read_method(name, **steps), read_method(name)
    assert method.unused == ("spectrum.power",)
    assert settings_in_identity(method) == settings_in_identity(plain)
    assert not {"equalize", "calibrate", "spectrum"} & set(settings_in_identity(plain))


@pytest.mark.parametrize("step", BEFORE)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_step_before_the_rule_is_a_merge_of_other_experts(name: str, step: str) -> None:
    """Also where thresholds cover the whole model, and in every space."""
    plain = dropping(EVERYWHERE[name])
    settings = read_method("average", **BEFORE[step])
    method = replace(plain, equalize=settings.equalize, calibrate=settings.calibrate)
    experts = unequal_experts()
    others: dict[str, dict[str, LoraPair]] = {expert: {} for expert in experts}
    for module in experts["a"]:
        prepared = prepare(Module(module, list(experts), [experts[e][module] for e in experts]), method)
        for expert, pair in zip(experts, prepared.pairs, strict=True):
            others[expert][module] = pair
    found, expected = merge_models(experts, method), merge_models(others, plain)
    for module in found:
        assert torch.equal(dense(found[module]), dense(expected[module]))


@pytest.mark.parametrize("step", STEPS)
def test_equal_weights_of_all_experts_are_a_strength(step: str) -> None:
    """So is their number in a mean, but where Pico is asked for the experts' mean norm."""
    experts = unequal_experts()

    def merged_by(name: str, **changes: Any) -> dict[str, Tensor]:
        return merge(experts, read_method(name, space="delta", **changes, **STEPS[step]))

    halved = merged_by("task_arithmetic", strength=0.5)
    assert_same(merged_by("task_arithmetic", strength=1.0, weights=dict.fromkeys(experts, 0.5)), halved)
    if step != "pico_merge":
        assert_same(merged_by("average", strength=0.5 * len(experts)), halved)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["task_arithmetic", "robustmerge_eq5", "ties", "knots_ties", "tsv_m"])
def test_the_strength_multiplies_what_comes_out(name: str, step: str) -> None:
    space = {"space": "delta"} if name == "ties" else {}
    experts = unequal_experts()
    once, thrice = (merge_models(experts, with_strength(name, s, **space, **STEPS[step])) for s in (1.0, 3.0))
    factor = 9.0 if read_method(name, **space).multiplies_factors else 3.0
    for module in once:
        torch.testing.assert_close(dense(thrice[module]), factor * dense(once[module]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["ties", "task_arithmetic", "tsv_m"])
def test_an_expert_of_zeros_and_experts_of_zeros_are_merged_cleanly(name: str, step: str) -> None:
    space = {"space": "delta"} if name == "ties" else {}
    method, experts = read_method(name, **space, **STEPS[step]), unequal_experts()
    zeros = {m: LoraPair(p.A, torch.zeros_like(p.B)) for m, p in experts["a"].items()}
    for merged in merge_models({**experts, "zero": zeros}, method).values():
        assert torch.isfinite(dense(merged)).all() and dense(merged).any()
    for merged in merge_models({"one": zeros, "two": zeros}, method).values():
        assert not dense(merged).any()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["task_arithmetic", "tsv_m"])
def test_an_expert_that_lacks_a_module_takes_no_part_in_its_steps(name: str, step: str) -> None:
    space = {"space": "delta"} if name == "task_arithmetic" else {}
    method, experts = read_method(name, **space, **STEPS[step]), unequal_experts()
    module, *_ = experts["a"]
    alone = {expert: {module: pairs[module]} for expert, pairs in experts.items() if expert != "c"}
    lacking = {**experts, "c": {m: pair for m, pair in experts["c"].items() if m != module}}
    found, expected = (dense(merge_models(one, method)[module]) for one in (lacking, alone))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("step", STEPS)
def test_what_cancels_stays_small(step: str) -> None:
    """Two experts of opposite updates by other factors leave rounding, whose norm is not restored."""
    pair = LoraPair(torch.randn(16, 300), torch.randn(200, 16))
    experts = {"a": pair, "b": LoraPair(3 * pair.A, -pair.B / 3)}
    merged = dense(merge_pairs(experts, read_method("task_arithmetic", space="delta", **STEPS[step])))
    assert torch.isfinite(merged).all()
    assert merged.norm() < 1e-4 * pair.delta().norm()


@pytest.mark.parametrize("rule", SPECTRUM)
def test_the_spectrum_of_a_dense_update_is_that_of_the_update_in_low_rank(rule: str) -> None:
    """`elected` with one expert returns its update, dense in delta space."""
    experts = {"a": unequal_experts()["a"]}
    changes = {"spectrum__rule": rule, "spectrum__beta": 0.4}
    pair = merge_models(experts, read_method("task_arithmetic", space="delta", strength=1.0, **changes))
    elected = read_method("task_arithmetic", space="delta", combine="elected", strength=1.0, **changes)
    full = merge_models(experts, elected)
    for module in pair:
        assert isinstance(pair[module], LoraPair) and isinstance(full[module], Tensor)
        torch.testing.assert_close(dense(pair[module]), dense(full[module]), rtol=1e-4, atol=1e-5)


def test_from_folders_to_an_adapter_the_same_with_one_worker_and_with_two(tmp_path: Path) -> None:
    save_expert(tmp_path / "a", seed=1)
    save_expert(tmp_path / "b", seed=2, lora_alpha=30)
    folders = [tmp_path / "a", tmp_path / "b"]
    steps = {"equalize__rule": "norm", "calibrate__rule": "pico", "spectrum__rule": "power"}
    for name in ("ties", "tsv_m"):
        method = read_method(name, **steps)
        merged, again = (merge_folders(folders, method, tmp_path / f"{name}{n}", n, **QUIET) for n in (1, 2))
        assert (merged / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()
        opened = [open_adapter(folder) for folder in folders]
        experts = {a.name: {m: a.pair(m) for m in a.shapes} for a in opened}
        for module, update in merge_models(experts, method).items():
            torch.testing.assert_close(open_adapter(merged).pair(module).delta(), dense(update))
        assert "equalize norm, calibrate pico, spectrum power" in (merged / "README.md").read_text()


# --- laws of single steps ----------------------------------------------------------------------------------------


def test_equal_norms_are_the_median_and_half_the_way_is_their_geometric_mean_with_it() -> None:
    module = first_module(unequal_experts())
    before = norms_of(module.pairs)
    after = norms_of(equalize(module, read_method("average", equalize__rule="norm").equalize).pairs)
    torch.testing.assert_close(after, before.median().expand(3), rtol=1e-5, atol=0)
    half = read_method("average", equalize__rule="norm", equalize__gamma=0.5).equalize
    torch.testing.assert_close(norms_of(equalize(module, half).pairs), (before * after).sqrt(), rtol=1e-5, atol=0)


def test_a_cap_lowers_what_is_far_above_the_median_and_nothing_else() -> None:
    module = first_module(unequal_experts())
    before = norms_of(module.pairs)
    middle = before.median()
    most = middle + 2 * (before - middle).abs().median()
    step = read_method("average", equalize__rule="cap", equalize__deviations=2.0).equalize
    after = equalize(module, step)
    torch.testing.assert_close(norms_of(after.pairs), before.clamp(max=most), rtol=1e-5, atol=0)
    assert torch.equal(after.pairs[0].B, module.pairs[0].B)


def test_pico_leaves_alone_what_a_single_expert_has_and_shrinks_what_all_share() -> None:
    """Two experts that share one output direction and own one each, all of equal size: c = 1/2, 1/4, 1/4."""
    shared, own, other = torch.eye(6)[:3]
    A = torch.eye(2, 5)
    pairs = [LoraPair(A, torch.stack([shared, own], 1)), LoraPair(A, torch.stack([shared, other], 1))]
    step = read_method("average", calibrate__rule="pico", calibrate__norm="none").calibrate
    for pair in calibrate(Module("m", ["a", "b"], pairs), step).pairs:
        torch.testing.assert_close(pair.B.norm(dim=0), torch.tensor([1 / 1.5, 1 / 1.25]))


def test_svc_gives_one_expert_and_experts_without_a_common_direction_back() -> None:
    left, right = torch.linalg.qr(torch.randn(40, 6))[0], torch.linalg.qr(torch.randn(50, 6))[0].T
    s = torch.tensor([6.0, 5, 4, 3, 2, 1])
    pairs = {"a": LoraPair(right[:3], left[:, :3] * s[:3]), "b": LoraPair(right[3:], left[:, 3:] * s[3:])}
    method = read_method("task_arithmetic", space="delta", strength=1.0, spectrum__rule="svc", spectrum__alpha=1.0)
    for experts in ({"a": pairs["a"]}, pairs):
        expected = sum(pair.delta() for pair in experts.values())
        torch.testing.assert_close(dense(merge_pairs(experts, method)), expected, rtol=1e-4, atol=1e-5)


def test_svc_counts_what_all_experts_have_once() -> None:
    pair = first_module(unequal_experts()).pairs[1]
    method = read_method("task_arithmetic", space="delta", strength=1.0, spectrum__rule="svc")
    merged = merge_pairs(dict.fromkeys("abcd", pair), method)
    torch.testing.assert_close(dense(merged), pair.delta(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["iso_c", "ct_merging"])
def test_svc_refuses_directions_that_are_arbitrary(method: str) -> None:
    """CT-Merging without common directions makes the values of an expert equal."""
    params = {"params__common_rank": 0} if method == "ct_merging" else {}
    with pytest.raises(UserError, match="made singular values equal.*merge.spectrum.rule=none"):
        merge_models(unequal_experts(), read_method(method, spectrum__rule="svc", **params))


def test_a_power_of_1_is_the_update_and_of_0_iso_c_with_the_norm_of_the_update() -> None:
    experts = dict(zip("abc", first_module(unequal_experts()).pairs, strict=True))
    plain = merge_pairs(experts, read_method("task_arithmetic", space="delta", strength=1.0))
    changes = {"space": "delta", "strength": 1.0, "spectrum__rule": "power"}
    one, zero = (merge_pairs(experts, read_method("task_arithmetic", **changes, spectrum__power=p)) for p in (1.0, 0.0))
    torch.testing.assert_close(dense(one), dense(plain), rtol=1e-4, atol=1e-4)
    iso = dense(merge_pairs(experts, read_method("iso_c")))
    torch.testing.assert_close(dense(zero), iso * dense(plain).norm() / iso.norm(), rtol=1e-4, atol=1e-4)


def test_boosting_keeps_the_large_values_and_raises_the_others_to_the_smallest_of_these() -> None:
    experts = dict(zip("abc", first_module(unequal_experts()).pairs, strict=True))
    changes = {"space": "delta", "strength": 1.0}
    before = singular_values(merge_pairs(experts, read_method("task_arithmetic", **changes)))
    step = {"spectrum__rule": "boost", "spectrum__beta": 0.8}
    after = singular_values(merge_pairs(experts, read_method("task_arithmetic", **changes, **step)))
    k = int((before.cumsum(0) / before.sum() < 0.8).sum())
    assert 0 < k < len(before) - 1
    torch.testing.assert_close(after, before.clamp(min=float(before[k])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"equalize__rule": "nrom"}, "unknown rule 'nrom'.*norm.*equalize.rule"),
        ({"equalize__gamma": -1.0}, "gamma must be at least 0.*equalize.gamma"),
        ({"calibrate__norm": "all"}, "unknown norm 'all'.*calibrate.norm"),
        ({"spectrum__alpha": 0.0}, "alpha must be above 0.*spectrum.alpha"),
        ({"spectrum__beta": 2.0}, r"beta must be in \[0, 1\], got 2.0 .*spectrum.beta"),
    ],
)
def test_wrong_settings_are_told(changes: dict[str, Any], said: str) -> None:
    for name in ("ties", "iso_c"):
        with pytest.raises(ConfigError, match=said):
            read_method(name, **changes)
