"""What the inspection tells of experts: exact spectra, the laws of what is compared, one run of the program.

Needs nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.program import compose
from pipeline.tools.inspect import inspect, read_request
from robustmerge.analysis.direction_robustness import compare_directions, compare_pruning, prune_pair
from robustmerge.analysis.entries import Histogram
from robustmerge.analysis.figure_tables import tabulate_directions, tabulate_layers, tabulate_pruning, write_captions
from robustmerge.analysis.inspection import inspect_folders
from robustmerge.analysis.inspection_files import read_inspection, write_inspection
from robustmerge.analysis.inspection_text import conclude, format_inspection
from robustmerge.formats.adapter import LoraPair
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.low_rank import compare, compare_A, decompose, decompose_sum, effective_rank, energy_of_first
from robustmerge.low_rank import singular_values as values_of
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, keep_largest, random_experts, save_expert, write_expert
from tests.original_layout import edit_config

ROLES = ("expert", "sum", "merged")


@st.composite
def pairs(draw: st.DrawFn) -> LoraPair:
    """Tall, wide and square pairs; some of lower rank than they have rows, some zero, small and large."""
    rank, d_in, d_out = (draw(st.integers(1, high)) for high in (6, 12, 9))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    A, B = torch.randn(rank, d_in, generator=source), torch.randn(d_out, rank, generator=source)
    if draw(st.booleans()):
        A[-1] = A[0]
    return LoraPair(A, B * draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4])))


def pair_of(rank: int = 3, d_in: int = 10, d_out: int = 7, seed: int = 0) -> LoraPair:
    source = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, d_in, generator=source), torch.randn(d_out, rank, generator=source))


# --- spectra ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_the_spectrum_is_that_of_the_dense_update(pair: LoraPair) -> None:
    dense = pair.B.double() @ pair.A.double()
    exact = torch.linalg.svdvals(dense)
    found, close = decompose(pair), {"rtol": 1e-9, "atol": 1e-12 * float(exact[0]) + 1e-30}
    torch.testing.assert_close((found.U * found.s) @ found.V.T, dense, rtol=1e-5, atol=3e-6 * float(exact[0]) + 1e-30)
    torch.testing.assert_close(found.s, exact[: len(found.s)], **close)
    torch.testing.assert_close(values_of(pair)[: len(exact)], exact[: len(values_of(pair))], **close)
    assert exact[len(found.s) :].sum() <= 1e-5 * exact[0]
    for basis in (found.U, found.V):
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(found.s), dtype=torch.float64))


def test_the_spectrum_of_a_sum_is_that_of_the_concatenated_factors() -> None:
    experts = [pair_of(2), pair_of(3, seed=1), pair_of(1, seed=2)]
    dense = sum(w * p.B.double() @ p.A.double() for w, p in zip((1.0, -2.0, 0.5), experts, strict=True))
    found = decompose_sum(experts, (1.0, -2.0, 0.5))
    torch.testing.assert_close(found.s, torch.linalg.svdvals(dense)[:6])


def test_equal_singular_values_count_one_each() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    assert energy_of_first(torch.tensor([2.0, 1.0])) == pytest.approx(0.8)
    assert effective_rank(torch.zeros(3)) == energy_of_first(torch.zeros(3)) == 0


# --- pairs of experts ---------------------------------------------------------------------------------------------


def test_an_expert_against_itself_has_cosine_and_overlap_1() -> None:
    one, other = pair_of(), pair_of(4, seed=1)
    found = compare([decompose(p) for p in (one, one, other)])
    assert found.columns[0, 1].item() == pytest.approx(1)
    assert found.rows[0, 1].item() == pytest.approx(1)
    assert found.inner[0, 1].item() == pytest.approx(found.inner[0, 0].item())
    assert compare_A([one, one, other])[0, 1].item() == pytest.approx(1)
    dense = [(p.B @ p.A).double() for p in (one, one, other)]
    expected = torch.tensor([[float((x * y).sum()) for y in dense] for x in dense], dtype=torch.float64)
    torch.testing.assert_close(found.inner, expected, rtol=1e-5, atol=1e-5)


def test_orthogonal_experts_have_cosine_and_overlap_0() -> None:
    eye = torch.eye(6)
    found = compare([decompose(LoraPair(eye[:2], eye[:, :2])), decompose(LoraPair(eye[2:5], eye[:, 2:5]))])
    assert found.columns[0, 1] == found.rows[0, 1] == found.inner[0, 1] == 0


def test_a_subspace_that_holds_the_other_overlaps_wholly() -> None:
    eye = torch.eye(6)
    found = compare([decompose(LoraPair(eye[:2], eye[:, :2])), decompose(LoraPair(eye[:4], eye[:, :4]))])
    assert found.columns[0, 1].item() == pytest.approx(1)


def test_A_of_different_ranks_are_compared_over_the_rows_that_both_have() -> None:
    large = pair_of(4)
    small = LoraPair(large.A[:2].clone(), torch.zeros(7, 2))
    assert compare_A([small, large])[0, 1].item() == pytest.approx(1)
    assert compare_A([small, LoraPair(torch.zeros(3, 10), torch.zeros(7, 3))])[0, 1] == 0


# --- direction robustness and pruning -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 0.3, -2.0]))
def test_an_expert_times_a_factor_keeps_its_directions(seed: int, factor: float) -> None:
    """Against itself all three numbers are 1; a negative factor turns every direction round."""
    expert = pair_of(seed=seed)
    found = compare_directions(decompose(expert), decompose(LoraPair(expert.A, factor * expert.B)))
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(found.similarity, ones if factor > 0 else -ones)
    torch.testing.assert_close(found.kept, factor * ones, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.ratio, abs(factor) * ones, rtol=1e-5, atol=1e-5)


def test_the_sum_of_orthogonal_experts_keeps_every_direction() -> None:
    eye = torch.eye(6)
    experts = [LoraPair(eye[:2], 3 * eye[:, :2]), LoraPair(eye[2:4], 2 * eye[:, 2:4])]
    for expert in experts:
        found = compare_directions(decompose(expert), decompose_sum(experts))
        torch.testing.assert_close(found.kept, torch.ones(2, dtype=torch.float64))


def test_a_zero_merge_keeps_nothing_and_a_zero_expert_has_no_direction() -> None:
    expert, zero = pair_of(), LoraPair(torch.randn(2, 10), torch.zeros(7, 2))
    assert compare_directions(decompose(expert), decompose(zero)).kept.tolist() == [0, 0, 0]
    assert len(compare_directions(decompose(zero), decompose(expert)).kept) == 0


def test_pruning_is_that_of_the_method_and_scaling_gives_back_what_it_took() -> None:
    pair = pair_of(4, 40, 30)
    pruned, scaled = prune_pair(pair, 0.5), prune_pair(pair, 0.5, scaled=True)
    assert torch.equal(pruned.A, keep_largest(pair.A, 0.5))
    assert torch.equal(pruned.B, keep_largest(pair.B, 0.5))
    took = pair.A.abs().sum(1) / pruned.A.abs().sum(1)
    torch.testing.assert_close(scaled.B, pruned.B * took)
    assert torch.equal(scaled.A, pruned.A)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_pruning_that_keeps_all_leaves_every_singular_value(pair: LoraPair) -> None:
    found = compare_pruning(pair, decompose(pair), density=1.0)
    for ratio in (found.pruned_ratio, found.scaled_ratio):
        assert torch.equal(ratio.isnan(), found.trained == 0)
        torch.testing.assert_close(ratio[found.trained > 0], torch.ones_like(ratio[found.trained > 0]))


# --- the figures of the paper -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), min_size=1, max_size=4))
def test_every_entry_is_counted_once_in_the_bin_that_holds_it(parts: list[list[float]]) -> None:
    entries = Histogram()
    for part in parts:
        entries.add(torch.tensor(part))
    rows, values = entries.rows(), torch.tensor(sum(parts, [])).double()
    assert [row["count"] for row in rows] == [
        int(((row["low"] <= values) & (values < row["high"])).sum()) for row in rows
    ]
    assert sum(row["count"] for row in rows) == len(values)
    assert sum(row["density"] * (row["high"] - row["low"]) for row in rows) == pytest.approx(1)


def write_layers(folder: Path, names: str = "ab") -> dict[str, Path]:
    modules = ("layers.0.v_proj", "layers.1.v_proj", "layers.2.v_proj", "layers.2.k_proj")
    return {n: write_expert(folder / n, pairs) for n, pairs in random_experts(names, modules).items()}


def test_an_expert_as_its_own_merge_keeps_all_and_the_sum_of_one_is_the_expert(tmp_path: Path) -> None:
    folders = write_layers(tmp_path, "a")
    found = inspect_folders(folders, {"itself": folders["a"]}, density=1.0)
    for row in tabulate_directions(found):
        assert [row[key] for key in ("similarity", "kept", "ratio")] == pytest.approx([1, 1, 1])
    assert [row["directions"] for row in tabulate_directions(found)] == ["largest", "rest"]
    assert [row["ratio"] for row in tabulate_pruning(found)] == pytest.approx([1] * 3 * 4)
    curves = {role: [row["value"] for row in tabulate_layers(found) if row["role"] == role] for role in ROLES}
    assert curves["sum"] == pytest.approx(curves["expert"])
    assert curves["merged"] == pytest.approx(curves["expert"])


def test_the_layers_that_are_shown_are_the_first_the_middle_and_the_last(tmp_path: Path) -> None:
    folders = write_layers(tmp_path)
    assert list(dict.fromkeys(row["layer"] for row in inspect_folders(folders).layers)) == [1, 2, 3]
    assert {row["module"] for row in inspect_folders(folders, kind="k_proj").layers} == {"layers.2.k_proj"}
    with pytest.raises(UserError, match="the kind 'q'; choose one of k_proj, v_proj"):
        inspect_folders(folders, kind="q")


def test_all_entries_of_the_experts_and_of_a_full_update_are_counted(tmp_path: Path) -> None:
    folders = write_layers(tmp_path)
    merge_folders(folders, read_method("average", space="delta", out__format="delta"), tmp_path / "full", **QUIET)
    found = inspect_folders(folders, full=tmp_path / "full")
    counts = {(row["expert"], row["matrix"]): 0 for row in found.entries}
    for row in found.entries:
        counts[row["expert"], row["matrix"]] += row["count"]
    assert counts == {("full", "full"): 4 * 70} | {(n, x): 4 * 4 * d for n in "ab" for x, d in (("A", 10), ("B", 7))}
    assert "the entries of the update in full" in write_captions(found)["figure3"]


@pytest.mark.parametrize("figure", ["figure3", "figure7", "figure8"])
def test_an_experiment_draws_its_figure_alone(figure: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folders = write_layers(tmp_path)
    words = [f"experts=[{folders['a']},{folders['b']}]", f"paths.runs={tmp_path / 'runs'}"]
    inspect(compose("inspect_adapters", [f"experiment={figure}", *words, f"merged=[{folders['a']}]"]))
    out = tmp_path / "runs" / "mini-tiny" / "inspection" / figure
    assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / f"{figure}.svg").read_text()
    assert (out / "figures.txt").read_text().removeprefix(f"{figure}. ").strip() in capsys.readouterr().out
    assert {file.stem.partition("_")[0] for file in out.iterdir()} == {figure, "figures", "inspection"}
    drawn = {file.name: file.read_bytes() for file in out.iterdir()}
    write_inspection(read_inspection(out / "inspection.json"), tmp_path / "again", figure)
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == drawn


def test_a_merge_that_a_figure_lacks_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["experiment=figure7", f"paths.runs={tmp_path}", f"experts=[{write_layers(tmp_path)['a']}]"]
    monkeypatch.setattr(sys, "argv", ["inspect_adapters.py", *words])
    with pytest.raises(UserError) as told:
        inspect(compose("inspect_adapters", words))
    command = f"python scripts/merge.py {words[1]} '{words[2]}'"
    assert f"'merged/ties' is no adapter folder yet; this makes it: {command}" in str(told.value)


# --- folders and the program --------------------------------------------------------------------------------------


def test_a_zero_expert_is_told_and_makes_nothing_undefined(tmp_path: Path) -> None:
    experts = random_experts("ab")
    experts["a"] = {m: LoraPair(p.A, torch.zeros_like(p.B)) for m, p in experts["a"].items()}
    folders = {name: write_expert(tmp_path / name, pairs) for name, pairs in experts.items()}
    found = inspect_folders(folders, {"merged": folders["a"]})
    text = format_inspection(found)
    assert "the update is zero, so that it adds nothing: a" in text
    assert found.pairs[0]["update_cosine"] == 0
    json.dumps([found.experts, found.pairs, found.merged], allow_nan=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [({"use_dora": True}, "DoRA magnitudes are left out"), ({"lora_bias": True}, "lora_bias vectors are left out")],
    ids=["dora", "lora_bias"],
)
def test_what_is_no_product_of_factors_is_left_out_and_said(config: dict, said: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_expert(tmp_path / name, seed, modules_to_save=["projector"], **config)
    found = inspect_folders({name: tmp_path / name for name in "ab"})
    assert f"{said} of all numbers here" in format_inspection(found)
    assert "modules_to_save: 2 tensors an expert" in format_inspection(found)


Tensors = dict[str, torch.Tensor]
KINDS: dict[str, Callable[[Tensors], Tensors]] = {
    "float8": lambda tensors: {name: x.to(torch.float8_e4m3fn) for name, x in tensors.items()},
    "float8 beside bfloat16": lambda tensors: {
        name: x.to(torch.float8_e4m3fn if "lora_B" in name else torch.bfloat16) for name, x in tensors.items()
    },
    "large": lambda tensors: {name: x * 1e17 for name, x in tensors.items()},
    "subnormal": lambda tensors: {name: x * 1e-44 for name, x in tensors.items()},
    "of one direction": lambda tensors: {name: x[:1, :1].contiguous() for name, x in tensors.items()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_can_be_merged_can_be_inspected(kind: str, tmp_path: Path) -> None:
    ranks = {"r": 1, "lora_alpha": 1} if kind == "of one direction" else {}
    for seed, name in enumerate(("a", "cost$5$^")):
        save_expert(tmp_path / name, seed)
        tensors = KINDS[kind](load_file(tmp_path / name / WEIGHTS))
        save_file(tensors, tmp_path / name / WEIGHTS)
        edit_config(tmp_path / name, **ranks)
    folders = {folder.name: folder for folder in tmp_path.iterdir()}
    inspection = inspect_folders(folders, {"merged": tmp_path / "a"})
    json.dumps(dataclasses.asdict(inspection), allow_nan=False)
    assert not any("nan" in line for line in conclude(inspection))


def test_what_cannot_be_inspected_is_told_whole(tmp_path: Path) -> None:
    experts = random_experts("ab")
    experts["a"]["layers.0.q"].A[1, 2] = float("nan")
    experts["b"]["layers.1.q"].B[0, 0] = float("inf")
    folders = {name: write_expert(tmp_path / name, pairs) for name, pairs in experts.items()}
    with pytest.raises(UserError) as told:
        inspect_folders(folders)
    assert "expert 'a', module 'layers.0.q'" in str(told.value)
    assert "expert 'b', module 'layers.1.q'" in str(told.value)
    other = write_expert(tmp_path / "other", random_experts("c", ("elsewhere.q",))["c"])
    with pytest.raises(UserError, match="no module of the same name and shape in common"):
        inspect_folders({"b": folders["b"], "other": other})


def test_one_pair_is_no_pairs_and_a_share_that_every_kind_has_is_of_no_kind(tmp_path: Path) -> None:
    alike, different = ("layers.0.q", "layers.0.v"), None
    for experts, said in ((random_experts("ab", alike, rank=2), "in every kind of module"), (different, "in v")):
        if experts is None:
            draw = {"q": (30, 40), "v": (20, 12)}
            experts = {n: {f"layers.0.{k}": pair_of(2, *sizes) for k, sizes in draw.items()} for n in "ab"}
        folder = tmp_path / said.split()[-1]
        folders = {name: write_expert(folder / name, pairs) for name, pairs in experts.items()}
        text = format_inspection(inspect_folders(folders))
        assert "The pair of experts" in text
        assert f"({4 / 7 if said != 'in v' else 4 / 12:.0%}), {said}\n" in text


def test_a_wrong_density_is_told_with_the_other_mistakes() -> None:
    with pytest.raises(UserError) as told:
        read_request(compose("inspect_adapters", ["density=2", "figure=figure4", "peft.r=0"]))
    assert "(density)" in str(told.value)
    assert "unknown figure 'figure4'; choose one of figure3, figure7, figure8" in str(told.value)
    assert "(peft.r)" in str(told.value)


def test_the_program_tells_and_writes_what_it_found(tmp_path: Path) -> None:
    for seed, (name, rank) in enumerate((("one", 2), ("two", 4), ("three", 6))):
        write_expert(tmp_path / name, random_experts("x", rank=rank, seed=seed)["x"], lora_alpha=2 * rank)
    words = [f"experts=[{tmp_path / 'one'},{tmp_path / 'two'},3:{tmp_path / 'three'}]", f"out={tmp_path / 'out'}"]
    words += [f"merged=[sum:{tmp_path / 'one'},{tmp_path / 'two'}]", f"paths.runs={tmp_path / 'runs'}"]
    shown = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "inspect_adapters.py"), *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert "ranks differ (2, 4, 6): factor space needs equal ranks" in shown.stdout
    assert "N r / d" in shown.stdout
    out = tmp_path / "out"
    for name in ("inspection", "figure3", "figure7"):  # none of the modules is a value projection
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "inspection.txt").read_text() in shown.stdout
    merged = list(csv.DictReader((out / "merged.csv").open()))
    itself = [row for row in merged if (row["merged"], row["expert"]) == ("sum", "one")]
    assert [(row["similarity"], row["kept"], row["ratio"]) for row in itself] == [("1", "1", "1")] * 2
    found = json.loads((out / "inspection.json").read_text())
    assert [row["scalings"] for row in found["experts"]] == [[2.0]] * 3
    assert len(found["pairs"]) == 3
