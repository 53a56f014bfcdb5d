"""What of a merge of folders is not in one module: biases, the majority of the model, the dtypes of the experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.merging import write_merged
from robustmerge.method import Method
from robustmerge.method_parts import Out
from tests.merge_cases import QUIET, method_of, read_back, rewrite_tensors, save_expert, write_expert

WEIGHTS = {"a": 0.5, "c": -2.0}


@pytest.mark.parametrize(
    ("method", "share"),
    [
        (Method("sum", strength=3.0, weights=WEIGHTS), 9.0),
        (Method("mean", strength=3.0, combine="mean", weights=WEIGHTS), 9.0 / 3),
        (Method("sum", space="delta", strength=3.0, weights=WEIGHTS), 3.0),
    ],
)
def test_a_bias_of_the_update_is_summed_as_the_update_is(method: Method, share: float, tmp_path: Path) -> None:
    experts = {name: tmp_path / name for name in "abc"}
    for seed, folder in enumerate(experts.values()):
        save_expert(folder, seed=seed, lora_bias=True)
    write_merged(tmp_path / "merged", method, experts, **QUIET)
    merged, opened = open_adapter(tmp_path / "merged"), {name: open_adapter(f) for name, f in experts.items()}
    for module in merged.modules:
        expected = share * sum(WEIGHTS.get(name, 1.0) * a.bias(module) for name, a in opened.items())
        torch.testing.assert_close(merged.bias(module), expected)


def test_a_method_that_is_no_sum_averages_the_biases(tmp_path: Path) -> None:
    experts = {name: tmp_path / name for name in "abc"}
    for seed, folder in enumerate(experts.values()):
        save_expert(folder, seed=seed, lora_bias=True)
    write_merged(tmp_path / "merged", method_of("ties", strength=3.0, weights=WEIGHTS), experts, **QUIET)
    merged, opened = open_adapter(tmp_path / "merged"), [open_adapter(folder) for folder in experts.values()]
    for module in merged.modules:
        torch.testing.assert_close(merged.bias(module), sum(a.bias(module) for a in opened) / 3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_where_a_sum_is_zero_the_majority_of_the_whole_model_decides_in_folders_too(
    sign: float, tmp_path: Path
) -> None:
    ones = torch.ones(1, 2)
    experts = {
        name: {
            "draw.q": LoraPair(ones, value * torch.ones(3, 1)),  # 1 - 1: undecided by itself
            "most.q": LoraPair(ones, sign * torch.ones(5, 1)),
        }
        for name, value in (("a", 1.0), ("b", -1.0))
    }
    method = Method("elected", "delta", 1.0, combine="elected", out=Out(rank=1))
    folders = {name: write_expert(tmp_path / name, pairs) for name, pairs in experts.items()}
    write_merged(tmp_path / "merged", method, folders, **QUIET)
    found = open_adapter(tmp_path / "merged")
    torch.testing.assert_close(found.pair("draw.q").delta(), sign * torch.ones(3, 2))
    for module, update in merge_models(experts, method).items():
        torch.testing.assert_close(found.pair(module).delta(), update.delta())


def test_the_dtype_of_the_experts_is_the_smallest_that_holds_all_of_theirs(tmp_path: Path) -> None:
    dtypes = {"a": torch.float16, "b": torch.bfloat16}
    pair = {"layers.0.q": LoraPair(torch.ones(2, 4), torch.ones(3, 2))}
    folders = {
        name: write_expert(tmp_path / name, {m: LoraPair(p.A.to(dtype), p.B.to(dtype)) for m, p in pair.items()})
        for name, dtype in dtypes.items()
    }
    write_merged(tmp_path / "both", method_of("average", out__dtype="experts"), folders, **QUIET)
    write_merged(tmp_path / "one", method_of("average", out__dtype="experts"), {"b": folders["b"]}, **QUIET)
    assert {x.dtype for x in read_back(tmp_path / "both").values()} == {torch.float32}
    assert {x.dtype for x in read_back(tmp_path / "one").values()} == {torch.bfloat16}


def test_a_layer_that_was_trained_in_float32_keeps_it_beside_half_precision_lora(tmp_path: Path) -> None:
    save_expert(tmp_path / "expert", modules_to_save=["projector"])
    rewrite_tensors(
        tmp_path / "expert",
        lambda tensors: {name: x.bfloat16() if "lora" in name else x for name, x in tensors.items()},
    )
    write_merged(tmp_path / "out", method_of("average", out__dtype="experts"), {"e": tmp_path / "expert"}, **QUIET)
    trained, merged = open_adapter(tmp_path / "expert"), open_adapter(tmp_path / "out")
    assert trained.dtype == torch.bfloat16
    assert all(torch.equal(trained.extra(name), merged.extra(name)) for name in trained.extras)
