"""Settings that a method does not use: told, without effect, and no part of an address."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair
from robustmerge.merge_record import describe_merge
from robustmerge.merging import write_merged
from robustmerge.method import build_method, list_methods, read_method
from robustmerge.stage.address import settings_in_identity
from robustmerge.stage.settings import values_of
from tests.merge_cases import random_experts, write_expert

SIGN = {"rule": "sign", "density": 1.0, "count": "released"}
NONE = {"rule": "none", "density": 1.0}
UNUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # method, what makes settings idle, those settings
    ("average", {}, {"disjoint": "sum", "seed": 3}),
    ("average", {}, {"balance__density": 0.2, "balance__variant": "vision"}),
    ("average", {}, {"prune__scope": "model", "prune__count": "exact"}),
    ("average", {}, {"scale__normalize": True, "scale__floor": 0.5, "scale__empty_row": "drop"}),
    ("average", {}, {"weights": {"a": 1.0}}),
    ("ties", {"space": "delta"}, {"basis__cut": 0.1, "basis__relative": True}),
    ("ties", {"prune": SIGN}, {"prune__count": "exact", "seed": 3}),
    ("task_arithmetic", {"space": "knots"}, {"basis__cut": 0.1, "prune__scope": "tensor"}),
    ("dare", {"space": "delta"}, {"prune__scope": "tensor", "prune__count": "authors"}),
    ("pcb", {}, {"disjoint": "sum", "prune__count": "exact"}),
    ("average", {}, {"prune__skip": 0.1, "prune__epsilon": 0.1}),
    ("ties", {"prune__density": 1.0}, {"prune__skip": 0.1, "prune__epsilon": 0.1}),
    ("sce", {}, {"prune__skip": 0.1, "prune__epsilon": 0.1, "prune__count": "exact"}),
    ("robustmerge", {"prune": NONE, "scale__floor": 0.0}, {"scale__floor": 0.5}),
    ("robustmerge", {"scale": {"B": None, "normalize": False, "floor": 0.0}},
     {"scale__normalize": True, "scale__floor": 0.5, "scale__empty_row": "drop"}),
    ("svd", {"out__format": "model"}, {"out__dtype": "float16"}),
    ("iso_c", {"out__format": "model"}, {"out__dtype": "float16"}),
]  # fmt: skip
USED: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"disjoint": "sum"}),
    ("ties", {"prune__scope": "model"}),
    ("ties", {"prune__count": "released"}),
    ("pcb", {"balance__density": 0.2}),
    ("pcb", {"balance__variant": "vision"}),
    ("pcb", {"prune__scope": "model"}),
    ("ties", {"prune__skip": 0.1}),
    ("breadcrumbs", {"prune__count": "authors"}),
    ("breadcrumbs", {"prune__rescale": "l1"}),
    ("dare", {"prune__epsilon": 0.1}),
    ("della", {"combine": "sum", "prune__scope": "model"}),
    ("sce", {"prune__scope": "model"}),
    ("sce", {"disjoint": "mean"}),
    ("dare", {"seed": 3}),
    ("dare_ties", {"seed": 3}),
    ("knots_ties", {"basis__cut": 0.1}),
    ("knots_ties", {"basis__relative": True}),
    ("robustmerge", {"scale__normalize": False}),
    ("robustmerge", {"scale__floor": 0.0}),
    ("robustmerge", {"scale__empty_row": "drop"}),
    ("average", {"weights": {"a": 0.5}}),
    ("average", {"out__dtype": "float16"}),
]


def numbers_of(update: LoraPair | torch.Tensor) -> torch.Tensor:
    return update.delta() if isinstance(update, LoraPair) else update


@pytest.mark.parametrize(("name", "idle", "unused"), UNUSED, ids=str)
def test_a_setting_that_is_not_used_is_named_and_changes_neither_the_merge_nor_its_address(
    name: str, idle: dict, unused: dict
) -> None:
    method, other = read_method(name, **idle), read_method(name, **{**idle, **unused})
    assert method.unused == ()
    assert set(other.unused) == {key.replace("__", ".") for key in unused}
    assert settings_in_identity(other) == settings_in_identity(method)
    experts = random_experts()
    there, here = merge_models(experts, other), merge_models(experts, method)
    assert all(torch.equal(numbers_of(there[m]), numbers_of(here[m])) for m in here)


@pytest.mark.parametrize(("name", "changes"), USED, ids=str)
def test_a_setting_that_is_used_is_another_result(name: str, changes: dict) -> None:
    method = read_method(name, **changes)
    assert method.unused == ()
    assert settings_in_identity(method) != settings_in_identity(read_method(name))


@pytest.mark.parametrize("name", list_methods())
def test_a_method_file_sets_nothing_that_it_does_not_use(name: str) -> None:
    assert read_method(name).unused == ()


def test_a_setting_waits_for_the_rule_that_uses_it_also_on_the_way_to_another_process() -> None:
    method = read_method("average", disjoint="sum")
    sent = build_method(values_of(method))
    assert sent.unused == ("disjoint",)
    assert dataclasses.replace(sent, combine="elected").as_used.disjoint == "sum"


def test_the_line_and_the_table_that_end_a_merge_say_what_was_not_used(tmp_path: Path) -> None:
    folders = {name: write_expert(tmp_path / name, pairs) for name, pairs in random_experts().items()}
    said: list[str] = []
    for number, changes in enumerate(({}, {"balance__density": 0.2, "seed": 3})):
        method = read_method("average", **changes)
        record = write_merged(tmp_path / f"{number}", method, folders, say=said.append)
        assert describe_merge(method, record).get("not used", "") == ", ".join(method.unused)
    assert "not used" not in said[0]
    assert said[1].endswith("not used: balance.density, seed")
