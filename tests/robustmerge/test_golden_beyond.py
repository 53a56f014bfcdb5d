"""The methods beyond the paper against what published code makes of the same experts, and through the files.

The cases in tests/golden/merging say where they come from, with which settings and within which tolerance. That is the
authors' own code, but for CT-Merging, LoRA-LEGO and DO-Merging, of whose authors none was found.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from robustmerge.algebra import merge_pairs
from robustmerge.beyond import lora_lego
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.merge_record import read_merge_record
from robustmerge.merging import merge_folders, merge_with_summary
from robustmerge.method import read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, REPOSITORY, Case, Tiny, assert_within, cases, save_expert
from tests.robustmerge.test_beyond import METHODS

OUTPUTS: list[tuple[str, str, dict[str, Any]]] = [  # folder, output in the case, settings; strength 1 in all
    ("tsv_m", "output.", {}),
    ("iso_c", "output.", {}),
    ("iso_cts", "output.", {}),
    ("swudi", "output.swudi.", {}),
    ("swudi", "output.aswudi.", {"variant": "aswudi"}),
    ("swudi", "output.aswudi_mean.", {"variant": "aswudi", "init": "mean"}),
    ("dc_merge", "output.avg.", {"smoothing": "avg"}),
    ("dc_merge", "output.linear.", {"smoothing": "linear"}),
    *(
        ("compress_then_merge", f"output.{rule}_beta{beta}.", {"rule": rule.rstrip("25"), "beta": beta})
        for rule in ("sum", "ties25")
        for beta in (0.25, 1.0)
    ),
    ("ct_merging", "output.k4.", {}),
    ("ct_merging", "output.k2.", {"common_rank": 2}),
    ("ct_merging", "output.k4_res3.", {"residual_rank": 3}),
    ("lora_lego", "output.ctm.", {}),  # of experts for which every start of k-means ends in the same clusters
    ("do_merging", "output.closed.", {}),  # closed_1overN is N times this
]
FROBENIUS = {
    "tsv_m": 1e-4, "iso_c": 1e-4, "iso_cts": 1e-4, "swudi": 5e-3, "dc_merge": 1e-4, "compress_then_merge": 0.02,
    "ct_merging": 1e-6, "lora_lego": 1e-6, "do_merging": 1e-6,
}  # fmt: skip


def case_of(folder: str, output: str) -> list[Path]:
    return [path for path in cases(folder) if Case(path).group(output)]


@pytest.mark.parametrize(
    ("path", "output", "changes"),
    [
        pytest.param(path, output, changes, id=f"{folder}-{path.stem}-{output.removeprefix('output.')}")
        for folder, output, changes in OUTPUTS
        for path in case_of(folder, output)
    ],
)
def test_a_method_equals_its_published_code(path: Path, output: str, changes: dict[str, Any]) -> None:
    case, name = Case(path), path.parent.name
    for module in case.modules:
        pairs = [case.pair(expert, module) for expert in case.experts]
        pairs = [LoraPair(p.A.float(), p.B.float()) for p in pairs]
        found = METHODS[name](pairs, **changes, strength=1.0).delta()
        reference = case.tensors[f"{output}{module}.delta"]
        assert (found - reference).norm() <= FROBENIUS[name] * reference.norm(), module
        if "ties" not in output:  # one flipped entry is allowed there
            assert_within(found, reference, case.about["tolerance"], module)


@pytest.mark.parametrize("path", cases("compress_then_merge"), ids=lambda path: path.stem)
def test_robustmerge_as_the_authors_of_compress_then_merge_read_it(path: Path) -> None:
    case = Case(path)
    method = read_method("robustmerge", prune__count="authors", scale__floor=0.0, strength=1.0)
    for module in case.modules:
        merged = merge_pairs({expert: case.pair(expert, module) for expert in case.experts}, method, module)
        for part in ("A", "B"):
            reference = case.tensors[f"output.robustmerge_ctm.{module}.lora_{part}"]
            assert_within(getattr(merged, part), reference, {"rtol": 1e-5, "atol_rel_to_max": 1e-6}, f"{module} {part}")


@pytest.mark.parametrize("path", cases("lora_lego"), ids=lambda path: path.stem)
@pytest.mark.parametrize("output", ["ctm", "ctm_2r"])
def test_lora_lego_averages_given_clusters_as_the_authors_of_compress_then_merge_do(path: Path, output: str) -> None:
    case = Case(path)
    for module in case.modules:
        pairs = [case.pair(expert, module) for expert in case.experts]
        units = torch.cat([torch.cat([p.A, p.B.T], dim=1) for p in pairs]).double()
        labels = case.tensors[f"aux.labels.{output}.{module}"]
        found = lora_lego.average_clusters(units, labels, pairs[0].A.shape[1], strength=1.0).delta()
        assert_within(found, case.tensors[f"output.{output}.{module}.delta"], case.about["tolerance"], module)


def test_all_cases_are_here() -> None:
    assert {name: len(cases(name)) for name in METHODS} == {
        "tsv_m": 4, "iso_c": 4, "iso_cts": 4, "swudi": 5, "dc_merge": 2, "compress_then_merge": 2,
        "ct_merging": 3, "lora_lego": 2, "do_merging": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_lists_the_settings_of_its_function_with_their_defaults(name: str) -> None:
    values = yaml.safe_load((REPOSITORY / "configs" / "merge" / f"{name}.yaml").read_text())
    parameters = list(inspect.signature(METHODS[name]).parameters.values())[1:]
    assert values["params"] == {parameter.name: parameter.default for parameter in parameters}
    assert values["_target_"] == f"robustmerge.beyond.{name}.merge"


@pytest.mark.parametrize("name", METHODS)
def test_from_folders_to_an_adapter_that_peft_loads(name: str, tmp_path: Path) -> None:
    """Ranks 3 and 2, other alphas, rsLoRA; the same bytes with one worker and with two."""
    save_expert(tmp_path / "a", seed=1)
    save_expert(tmp_path / "b", seed=2, r=2, lora_alpha=8, use_rslora=True)
    folders = [tmp_path / "a", tmp_path / "b"]
    merged, again = (merge_folders(folders, name, tmp_path / f"{n} workers", n, **QUIET) for n in (1, 2))
    assert (merged / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()
    model = PeftModel.from_pretrained(Tiny(), merged).eval()
    pair = open_adapter(merged).pair("layers.0.q")
    layer = model.get_submodule("base_model.model.layers.0.q")
    torch.testing.assert_close(layer.get_delta_weight("default"), pair.delta())


def test_what_a_method_warns_of_is_said_once_at_the_end_of_a_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("ab"):
        save_expert(tmp_path / name, seed)
    experts = {name: tmp_path / name for name in "ab"}
    merge_with_summary(tmp_path / "out", read_method("dc_merge"), experts)
    warning = (
        "density=0.001 keeps 1 of the 36 coordinates of an expert with 3 directions in layers.0.q, and less than one a "
        "direction in 4 of 4 modules; the paper's text has 10 %: merge.params.density=0.1"
    )
    assert capsys.readouterr().out.count("warning: ") == 1
    assert read_merge_record(tmp_path / "out" / "manifest.json")["warnings"] == [warning]
    said: list[str] = []
    merge_folders(experts, "dc_merge", tmp_path / "again", say=said.append)
    assert [line.count(f"so {warning}") for line in said if "merged" in line] == [1]
    merge_with_summary(tmp_path / "more", read_method("dc_merge", params__density=0.1), experts)
    assert "warning: " not in capsys.readouterr().out


def test_wrong_settings_are_told_once_and_nothing_is_written(tmp_path: Path) -> None:
    save_expert(tmp_path / "a")
    for key, said in (
        ("variant", "unknown variant"),
        ("tme", "argument 'tme'; .* it takes variant"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            merge_folders([tmp_path / "a"], read_method("swudi", **{f"params__{key}": "x"}), tmp_path / "out", **QUIET)
        assert len(str(refused.value).splitlines()) == 1
        assert not list((tmp_path / "out").glob("*"))
