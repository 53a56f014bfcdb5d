"""RobustMerge against its released code, sums against peft.

The cases in tests/golden/merging say where they come from, with which settings and within which tolerance. RobustMerge
goes the whole way, from adapter folders to the merged folder. Other methods: test_golden_methods.py and, beyond
the paper, test_golden_beyond.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import LoraPair
from robustmerge.merging import merge
from robustmerge.stage.settings import UserError
from tests.merge_cases import Case, address_of, assert_within, cases, method_of, read_back, write_expert

OFFICIAL = [path for path in cases("robustmerge_official") if "_nan_" not in path.name]
REFUSED = [path for path in cases("robustmerge_official") if "_nan_" in path.name]
RESOLUTION = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}  # one unit in the last place, relative
EXACT = {"rtol": 1e-5, "atol_rel_to_max": 1e-6}
SVD = {"rtol": 1e-4, "atol_rel_to_max": 1e-5}


def named(path: Path) -> str:
    return path.stem


def write_experts(case: Case, root: Path) -> dict[str, Path]:
    """The case's experts as adapter folders, the projector under modules_to_save."""
    folders = {}
    for expert in case.experts:
        pairs = {module: case.pair(expert, module) for module in case.modules}
        extras = case.group(f"input.{expert}.nonlora.")
        folders[expert] = write_expert(root / expert, pairs, extras, modules_to_save=["mm_projector"])
    return folders


def test_all_cases_are_here() -> None:
    assert (len(OFFICIAL), len(REFUSED), len(cases("peft"))) == (7, 1, 4)


@pytest.mark.parametrize("path", OFFICIAL, ids=named)
def test_robustmerge_equals_the_released_code(path: Path, tmp_path: Path) -> None:
    case, method = Case(path), method_of("robustmerge")
    experts = write_experts(case, tmp_path)
    merged = read_back(merge(address_of(tmp_path, method, experts), method, experts, say=lambda text: None))
    half = case.about["input_dtype"] != "float32"
    reference = case.group("output_upcast." if half else "output.")
    tolerance = case.about["tolerance"]["output_upcast"] if half else case.about["tolerance"]
    for module in case.modules:
        for part in ("lora_A", "lora_B"):
            name = f"{module}.{part}"
            assert_within(merged[f"{name}.weight"], reference[name], tolerance, name)


@pytest.mark.parametrize("path", OFFICIAL, ids=named)
def test_the_projector_is_the_plain_mean(path: Path, tmp_path: Path) -> None:
    case, method = Case(path), method_of("robustmerge")
    experts = write_experts(case, tmp_path)
    merged = read_back(merge(address_of(tmp_path, method, experts), method, experts, say=lambda text: None))
    resolution = RESOLUTION[case.about["input_dtype"]]
    reference = case.group("output.nonlora.")
    assert reference
    for name, x in reference.items():
        assert_within(merged[name], x, {"rtol": resolution, "atol_rel_to_max": resolution}, name)


@pytest.mark.parametrize("path", REFUSED, ids=named)
def test_where_the_released_code_gives_nan_expert_module_and_row_are_named(path: Path, tmp_path: Path) -> None:
    case, method = Case(path), method_of("robustmerge")
    experts = write_experts(case, tmp_path)
    expert, row = case.about["special"]["zero_row"]
    address = address_of(tmp_path, method, experts)
    with pytest.raises(UserError) as refused:
        merge(address, method, experts, say=lambda text: None)
    undefined = [module for module in case.modules if case.tensors[f"output.{module}.lora_B"].isnan().any()]
    assert undefined
    for module in undefined:
        assert f"expert 'expert{expert}', module '{module}': row {row} of A" in str(refused.value)
    assert "merge.scale.empty_row=drop" in str(refused.value)
    assert not address.path.exists()


@pytest.mark.parametrize("path", REFUSED, ids=named)
def test_dropping_the_empty_row_changes_nothing_else(path: Path) -> None:
    case = Case(path)
    expert, row = case.about["special"]["zero_row"]
    for module in case.modules:
        pairs = {name: case.pair(name, module) for name in case.experts}
        merged = merge_pairs(pairs, method_of("robustmerge", scale__empty_row="drop", scale__floor=0.0), module)
        other = {name: pair for name, pair in pairs.items() if name != f"expert{expert}"}
        alone = merge_pairs(other, method_of("robustmerge", scale__floor=0.0), module)
        assert torch.isfinite(merged.B).all()
        assert_within(merged.B[:, row], alone.B[:, row], EXACT, "the row that only the others have")


def combinations(path: Path) -> list[str]:
    """Those of peft's combinations in the case that are a sum of updates."""
    return [c["name"] for c in Case(path).about["hyperparameters"]["combinations"] if c["name"] in ("cat", "svd")]


@pytest.mark.parametrize(
    ("path", "kind"),
    [pytest.param(path, kind, id=f"{path.stem}-{kind}") for path in cases("peft") for kind in combinations(path)],
)
def test_sums_of_updates_and_their_cut_to_a_rank_equal_peft(path: Path, kind: str) -> None:
    case = Case(path)
    settings = case.about["hyperparameters"]
    weights = dict(zip(case.experts, settings["weights"], strict=True))
    name, tolerance = {"cat": ("task_arithmetic", EXACT), "svd": ("svd", SVD)}[kind]
    method = method_of(name, space="delta", strength=1.0, weights=weights)
    for module in case.modules:
        pairs = {}
        for expert, alpha in zip(case.experts, settings["lora_alpha"], strict=True):
            pair = case.pair(expert, module)
            pairs[expert] = LoraPair(pair.A, pair.B * (alpha / pair.rank))
        merged = merge_pairs(pairs, method, module)
        assert merged.rank == (case.about["rank"] if kind == "svd" else sum(pair.rank for pair in pairs.values()))
        assert_within(merged.delta(), case.tensors[f"output.{kind}.{module}.delta"], tolerance, module)
