"""What cannot be merged is refused: what, where and what would work, all at once, and nothing is written."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustmerge.algebra import merge_models, merge_pairs
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.adapter_config import WEIGHTS
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import Method, read_method
from robustmerge.method_parts import Out
from robustmerge.module import EmptyRowsError
from robustmerge.stage.address import DRAFT
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, Tiny, method_of, random_experts, save_expert, write_expert

SUM = Method(name="sum", strength=1.0)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base model"),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused(config: dict, told: str, tmp_path: Path) -> None:
    save_expert(tmp_path / "expert", **config)
    with pytest.raises(UserError, match=told):
        write_merged(tmp_path / "merged", SUM, {"expert": tmp_path / "expert"}, **QUIET)
    assert not (tmp_path / "merged").exists()


def test_settings_of_a_later_peft_are_refused_as_soon_as_they_say_something(tmp_path: Path) -> None:
    pairs = random_experts("a")["a"]
    open_adapter(write_expert(tmp_path / "off", pairs, use_new_thing=None))
    with pytest.raises(UserError, match="use_new_thing=True cannot be merged here"):
        open_adapter(write_expert(tmp_path / "on", pairs, use_new_thing=True))


def test_where_the_largest_are_skipped_no_density_is_advised() -> None:
    pair = LoraPair(torch.tensor([[1.0, 2.0, 1.0, 2.0], [9.0, 9.0, 9.0, 9.0]]), torch.ones(3, 2))
    method = method_of("breadcrumbs", scale__B="A", prune__density=0.25, prune__skip=0.5)
    with pytest.raises(EmptyRowsError, match="row 1 of A") as refused:
        merge_pairs({"a": pair}, method)
    assert "merge.scale.empty_row=drop" in str(refused.value) and "density" not in str(refused.value)


def test_the_smallest_density_that_works_works_and_nothing_below_it_does() -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    pairs["b"].A[2] *= 0.3
    for count in ("released", "authors", "exact"):
        with pytest.raises(EmptyRowsError, match="expert 'b', module 'here': row 2 of A") as refused:
            merge_pairs(pairs, method_of("robustmerge", prune__count=count), "here")
        density = float(re.search(r"smallest density that works is ([\d.]+)", str(refused.value))[1])
        merge_pairs(pairs, method_of("robustmerge", prune__count=count, prune__density=density))
        with pytest.raises(EmptyRowsError):
            below = round(density - 1e-4, 4)
            merge_pairs(pairs, method_of("robustmerge", prune__count=count, prune__density=below))


@pytest.mark.parametrize("name", ["tsv_m_lines", "task_arithmetic"])
def test_an_expert_that_does_not_open_brings_no_other_error(tmp_path: Path, name: str) -> None:
    for expert, modules in random_experts("ab").items():
        (write_expert(tmp_path / expert, modules) / WEIGHTS).unlink()
    strength = {} if name == "tsv_m_lines" else {"strength": {".*vision.*": 1.0, "default": 0.5}}
    with pytest.raises(UserError) as refused:
        merge_folders([tmp_path / "a", tmp_path / "b"], read_method(name, **strength), tmp_path / "merged", **QUIET)
    assert len(str(refused.value).splitlines()) == 2 and "strength" not in str(refused.value)


def test_with_one_threshold_over_the_model_no_density_is_told() -> None:
    experts = random_experts("ab")
    experts["b"]["layers.0.q"].A[2] *= 1e-3
    with pytest.raises(EmptyRowsError) as refused:
        merge_models(experts, method_of("robustmerge", prune__scope="model", prune__density=0.2))
    assert "smallest density" not in str(refused.value)


def test_every_module_with_an_empty_row_counts_in_the_density_that_is_told(tmp_path: Path) -> None:
    experts = random_experts()
    experts["a"]["layers.0.q"].A[1] *= 0.3
    experts["c"]["layers.1.q"].A[0] *= 0.1
    folders = {k: write_expert(tmp_path / k, p) for k, p in experts.items()}
    with pytest.raises(UserError) as refused:
        write_merged(tmp_path / "merged", method_of("robustmerge"), folders, **QUIET)
    assert "expert 'a', module 'layers.0.q': row 1 of A" in str(refused.value)
    assert "expert 'c', module 'layers.1.q': row 0 of A" in str(refused.value)
    assert list((tmp_path / "merged").iterdir()) == []
    density = float(re.search(r"that works is ([\d.]+)", str(refused.value))[1])
    write_merged(tmp_path / "merged", method_of("robustmerge", prune__density=density), folders, **QUIET)
    drop = method_of("robustmerge", scale__empty_row="drop")
    empty = str(refused.value).count("is empty after pruning")
    assert write_merged(tmp_path / "dropped", drop, folders, **QUIET)["dropped_rows"] == empty


def test_what_is_dropped_is_every_row_without_a_scale_once_and_an_expert_of_zeros_has_none(tmp_path: Path) -> None:
    experts = random_experts()
    experts["a"]["layers.0.q"].A[1] *= 0.3
    for pair in experts["b"].values():
        pair.A.zero_()
        pair.B.zero_()
    folders = {k: write_expert(tmp_path / k, p) for k, p in experts.items()}
    for by, rows in ({"A": None, "B": "A"}, 1), ({"A": "A", "B": "A"}, 1), ({"A": None, "B": None}, 0):
        scale = {f"scale__{part}": source for part, source in by.items()}
        method = method_of("robustmerge", scale__empty_row="drop", prune__density=0.4, **scale)
        assert write_merged(tmp_path / f"{by}", method, folders, **QUIET)["dropped_rows"] == rows


def test_experts_that_do_not_fit_together_are_all_named_at_once(tmp_path: Path) -> None:
    experts = {k: write_expert(tmp_path / k, p) for k, p in random_experts("abc").items()}
    experts["d"] = write_expert(tmp_path / "d", random_experts("d", rank=2)["d"], base_model_name_or_path="other")
    experts["e"] = write_expert(tmp_path / "e", random_experts("e", modules=("layers.0.q", "layers.9.q"))["e"])
    experts["f"] = write_expert(tmp_path / "f", random_experts("f")["f"], fan_in_fan_out=True)
    with pytest.raises(UserError) as refused:
        method = method_of("robustmerge", targets="strict", weights={"g": 2.0})
        write_merged(tmp_path / "merged", method, experts, **QUIET)
    assert str(refused.value).splitlines() == [
        "expert 'd' has base_model_name_or_path other, the others tiny; "
        "merge.check_base=false merges them all the same",
        "expert 'f' has fan_in_fan_out True, the others none",
        "expert 'e' lacks module 'layers.1.q'",
        "expert 'e' alone has module 'layers.9.q'",
        "expert 'd' has rank 2, the others 4; in factor space ranks must be equal: take merge.product=each",
        "weights names an unknown expert 'g'; choose one of a, b, c, d, e, f (merge.weights)",
    ]
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": {"aa": 2.0}}, "weights names an unknown expert 'aa'; choose one of a, b, c"),
        ({"strength": -1.0}, r"strength multiplies A and B each, .* got -1.0 \(merge.strength\)"),
        ({"prune__rule": "none", "prune__density": 1.0, "prune__rescale": True}, r"rescale .* \(merge.prune.rescale\)"),
        ({"first": {"rule": "random", "scope": "model"}}, r"scope is of thresholds, .* \(merge.first.scope\)"),
        ({"basis__cut": 1.0, "basis__relative": True}, r"cut must .* below 1, got 1.0 \(merge.basis.cut\)"),
    ],
    ids=str,
)
def test_settings_that_would_do_nothing_or_something_else_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        merge_models(random_experts(), method_of("ties", **changes))


def test_what_is_no_model_and_no_pair_is_refused_in_memory() -> None:
    for nothing in ({}, {"a": {}}):
        with pytest.raises(UserError, match="there are no experts to merge, or one has no modules"):
            merge_models(nothing, SUM)
    with pytest.raises(UserError, match=r"of one rank, got A \[3, 5\] and B \[4, 2\]"):
        LoraPair(torch.ones(3, 5), torch.ones(4, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_place(value: float, tmp_path: Path) -> None:
    experts = random_experts()
    experts["b"]["layers.1.q"].B[5, 1] = value
    head = {"base_model.model.head.weight": torch.full((2,), value)}
    folders = {k: write_expert(tmp_path / k, p, head, modules_to_save=["head"]) for k, p in experts.items()}
    with pytest.raises(UserError) as refused:
        write_merged(tmp_path / "merged", SUM, folders, **QUIET)
    assert "expert 'b', module 'layers.1.q': row 5 of B holds NaN or infinity" in str(refused.value)
    assert "expert 'c', 'head.weight' holds NaN or infinity" in str(refused.value)
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_result_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    pairs = {"layers.0.q": LoraPair(torch.ones(2, 3).half(), torch.full((3, 2), 6e4).half())}
    experts = {name: write_expert(tmp_path / name, pairs) for name in "ab"}
    method = Method(name="m", strength=1.0, out=Out(dtype="experts"))
    with pytest.raises(UserError, match=r"module 'layers.0.q': the merged values do not fit torch.float16"):
        write_merged(tmp_path / "merged", method, experts, **QUIET)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    pairs = random_experts("a")["a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no adapter folder, it has no adapter_config.json"):
        open_adapter(tmp_path / "empty")
    (write_expert(tmp_path / "bare", pairs) / WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no adapter_model.safetensors and no adapter_model.bin; it has adapter_c"):
        open_adapter(tmp_path / "bare")
    cut = write_expert(tmp_path / "cut", pairs) / WEIGHTS
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot read .*cut/adapter_model.safetensors"):
        open_adapter(tmp_path / "cut")
    with pytest.raises(UserError, match="the config gives rank 9, the tensors are lora_A"):
        open_adapter(write_expert(tmp_path / "rank", pairs, r=9))
    with pytest.raises(UserError, match="tensor base_model.model.x.bias is neither lora_A or lora_B"):
        open_adapter(write_expert(tmp_path / "more", pairs, {"base_model.model.x.bias": torch.ones(1)}))


def test_a_config_that_contradicts_every_tensor_is_told_in_a_few_lines(tmp_path: Path) -> None:
    pairs = random_experts("a", tuple(f"layers.{n}.q" for n in range(30)))["a"]
    with pytest.raises(UserError) as refused:
        open_adapter(write_expert(tmp_path / "rank", pairs, r=9))
    told = str(refused.value).splitlines()
    assert len(told) == 6
    assert told[-1].endswith("(and 25 more)")


def test_a_pickle_that_runs_code_is_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    folder = write_expert(tmp_path / "a", random_experts("a")["a"], bin_file=True)
    torch.save({"x": Evil()}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="cannot read"):
        open_adapter(folder)
    assert not (tmp_path / "ran").exists()


WRITING = ("os.replace", "os.fsync", "os.mkdir", "robustmerge.stage.files.open")


@pytest.mark.parametrize("kind", ["adapter", "delta", "model"])
def test_whichever_write_fails_nothing_is_left_and_the_same_merge_goes_through_afterwards(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(experts):
        save_expert(folder, seed)
    save_in_shards(tmp_path / "base", Tiny().state_dict())
    method = method_of("ties", out__format=kind, **({"out__base": str(tmp_path / "base")} if kind == "model" else {}))
    merge_folders(experts, method, tmp_path / "undisturbed", **QUIET)
    place = tmp_path / "place"
    place.mkdir()

    def fail_at(number: int, patch: pytest.MonkeyPatch) -> list[object]:
        """Let the call of that number fail, of all that create, finish or rename a file."""
        calls: list[object] = []

        def guard(function: Callable[..., object]) -> Callable[..., object]:
            def called(*arguments: object) -> object:
                if arguments[1:] != ("rb",):
                    calls.append(arguments)
                    if len(calls) == number:
                        raise OSError(errno.ENOSPC, "No space left on device")
                return function(*arguments)

            return called

        for name in WRITING:
            plain = {"open": open, "fsync": lambda descriptor: None}.get(name.rpartition(".")[2])
            patch.setattr(name, guard(plain or getattr(os, name.removeprefix("os."))), raising=False)
        return calls

    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            calls = fail_at(number, patch)
            try:
                merge_folders(experts, method, place / "out", **QUIET)
            except OSError:
                assert list(place.iterdir()) == [], calls[-1]
                continue
        assert contents(place / "out") == contents(tmp_path / "undisturbed")
        if len(calls) < number:
            break
        shutil.rmtree(place / "out")  # what failed was not needed
    assert number > {"adapter": 12, "delta": 12, "model": 20}[kind]


def save_in_shards(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    folder.mkdir()
    where = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
    for file in set(where.values()):
        save_file({name: weights[name] for name in where if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text("{}")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder; of the manifest only that it is there."""
    return {file.name: b"" if file.name == "manifest.json" else file.read_bytes() for file in folder.iterdir()}


def test_a_merge_that_was_killed_as_it_appeared_goes_on_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    experts, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    for seed, folder in enumerate(experts):
        save_expert(folder, seed)
    whole = contents(merge_folders(experts, "ties", out, **QUIET))

    def undo(*names: str) -> None:
        """What a kill leaves: these files are not in their places yet."""
        (out / DRAFT).mkdir(exist_ok=True)
        for name in ("manifest.json", *names):
            (out / name).rename(out / DRAFT / name)

    undo("adapter_model.safetensors")
    with pytest.raises(UserError, match="unfinished merge of other experts or settings"):
        merge_folders(experts, "average", out, **QUIET)
    (out / "README.md").write_text("of the user")
    with pytest.raises(UserError, match="is there already"):
        merge_folders(experts, "ties", out, **QUIET)
    assert (out / "README.md").read_text() == "of the user"
    (out / "README.md").write_bytes(whole["README.md"])
    assert contents(merge_folders(experts, "ties", out, **QUIET)) == whole

    (out / "adapter_model.safetensors").write_bytes(b"trained on")
    with pytest.raises(UserError, match="this merge, but not as it was written: adapter_model.safetensors"):
        merge_folders(experts, "ties", out, **QUIET)
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="is there already"):
        merge_folders(experts, "ties", out, **QUIET)
