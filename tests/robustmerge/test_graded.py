"""Strengths and weights that differ by module: by patterns of names, and over the depth of the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustmerge.algebra import merge_models, merge_pairs
from robustmerge.cli.program import main
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.graded import find_depths, resolve
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import AnyMethod, FunctionMethod, Method, build_method, read_method
from robustmerge.stage.address import settings_in_identity
from robustmerge.stage.settings import UserError
from tests.law_cases import EVERYWHERE, MODULES, assert_same, draw, dropping, merge
from tests.merge_cases import QUIET, address_of, random_experts, write_expert

GRADED = {name: m for name, m in EVERYWHERE.items() if isinstance(m, Method)}
BY_ITSELF = {name: m for name, m in GRADED.items() if not m.needs_whole_model}
algebra = pytest.mark.parametrize("name", GRADED)
with_strength = pytest.mark.parametrize("name", [name for name, m in EVERYWHERE.items() if m.strength is not None])
LAYERS = tuple(f"model.layers.{n}.q" for n in range(5))


def graded(name: str, strength: Any, **weights: Any) -> Method:
    return dataclasses.replace(dropping(GRADED[name]), strength=strength, weights=weights or None)


def at_strength(name: str, strength: Any) -> AnyMethod:
    method = EVERYWHERE[name]
    if isinstance(method, FunctionMethod):
        return dataclasses.replace(method, params={**method.params, "strength": strength})
    return graded(name, strength)


# --- laws --------------------------------------------------------------------------------------------------------


@algebra
def test_equal_numbers_over_the_layers_are_the_number(name: str) -> None:
    experts = draw(0)
    there, here = (merge_models(experts, graded(name, s, b=w)) for s, w in (((0.7,) * 3, (0.3, 0.3)), (0.7, 0.3)))
    assert all(torch.equal(dense(there[m]), dense(here[m])) for m in MODULES)


def dense(update: LoraPair | torch.Tensor) -> torch.Tensor:
    return update.delta() if isinstance(update, LoraPair) else update


@pytest.mark.parametrize("name", BY_ITSELF)
def test_merging_module_by_module_with_its_own_numbers_is_the_graded_merge(name: str) -> None:
    """Left out are methods that measure the whole model, of which a module alone is another one."""
    experts = draw(1)
    strengths, weights = {MODULES[0]: 0.2, MODULES[1]: 1.0}, {MODULES[0]: 2.0, MODULES[1]: -0.5}
    merged = merge(experts, graded(name, strengths, c={".*q": 2.0, "default": -0.5}))
    for module in MODULES:
        alone = {expert: {module: pairs[module]} for expert, pairs in experts.items()}
        assert_same(merged, merge(alone, graded(name, strengths[module], c=weights[module])))


@with_strength
def test_a_strength_multiplies_each_module_as_much_as_a_number_there(name: str) -> None:
    experts = draw(2)
    merged, *plain = (merge(experts, at_strength(name, s)) for s in ([("layers.0.*", 0.5), ("default", 2.0)], 0.5, 2.0))
    assert_same(merged, {MODULES[0]: plain[0][MODULES[0]], MODULES[1]: plain[1][MODULES[1]]})


def test_weights_by_module_count_in_what_is_measured_over_the_whole_model() -> None:
    """PCB's scores are of weighted updates: weights by module are those of experts that are as much larger."""
    experts, method = draw(3), read_method("pcb", space="delta")
    weighted = dataclasses.replace(method, weights={"a": {"layers.0.*": 0.5, "default": 3.0}})
    larger = {**experts, "a": {m: LoraPair(p.A, p.B * f) for (m, p), f in zip(experts["a"].items(), (0.5, 3.0))}}  # noqa: B905
    assert_same(merge(experts, weighted), merge(larger, method))


def test_the_factor_of_a_grid_multiplies_a_graded_strength_as_a_whole() -> None:
    for name in ("robustmerge", "ties-delta-tensor", "task_arithmetic", "swudi"):
        method = at_strength(name, [0.5, 1.0])
        assert_same(merge(draw(4), method.with_factor(0.25)), merge(draw(4), method), times=0.25)


# --- which number a module has -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "numbers"),
    [([0.2, 1.0], [0.2, 0.4, 0.6, 0.8, 1.0]), ([0, 1, 0], [0, 0.5, 1, 0.5, 0]), ([2], [2] * 5)],
)
def test_a_list_is_interpolated_from_the_first_layer_to_the_last(gradient: list, numbers: list) -> None:
    found = resolve(tuple(gradient), [*LAYERS, "model.projector.0"], "strength")
    assert [found[module] for module in LAYERS] == pytest.approx(numbers)
    assert found["model.projector.0"] == pytest.approx(numbers[2])


def test_every_stack_of_layers_has_its_own_depth() -> None:
    modules = [
        "vision.layers.0.q",
        "vision.layers.3.q",
        "text.layers.10.mlp.experts.7.w1",
        "text.layers.20.q",
        "one.0.q",
    ]
    assert list(find_depths(modules).values()) == [0, 1, 0, 1, 1]


def test_the_first_pattern_that_matches_a_whole_name_decides() -> None:
    patterns = ((".*layers\\.[01].*", 0.5), ("model.*", 2.0))
    assert list(resolve(patterns, LAYERS, "strength").values()) == [0.5, 0.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("grade", "told"),
    [
        (
            {"layers": 1.0, "default": 1.0},
            r"pattern 'layers' matches no module .* there are 'model.layers.0.q', .* and 2",
        ),
        ({".*": 1.0, ".*q": 2.0}, "pattern '.*q' matches no module that none before it matches"),
        ({".*0.q": 1.0}, "no pattern matches 'model.layers.1.q', .* as default: 1.0"),
        ({"(": 1.0}, r"'\(' is no regular expression: missing \)"),
    ],
    ids=str,
)
def test_patterns_that_decide_nothing_are_refused(grade: dict, told: str) -> None:
    experts = random_experts("ab", LAYERS)
    for changes, key in (({"strength": grade}, "strength"), ({"weights": {"b": grade}}, r"weights\.b")):
        with pytest.raises(UserError, match=rf"(?s){told}.*\(merge\.{key}\)"):
            merge_models(experts, read_method("task_arithmetic", **changes))


def test_a_pattern_that_takes_long_is_ended() -> None:
    with pytest.raises(UserError, match=r"take more than 2 s \(merge.strength\)"):
        merge_models(random_experts("ab", LAYERS), read_method("average", strength={"(.*)*(.*)*(.*)*!": 1.0}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strength": []}, "strength must have at least two numbers over the depth, or a pattern, got \\[\\]"),
        ({"strength": [1]}, "strength must have at least two numbers over the depth, or a pattern, got \\[1\\]"),
        ({"strength": {}}, "strength must have at least two numbers over the depth, or a pattern, got \\[\\]"),
        ({"strength": [1.0, float("inf")]}, "strength must be a finite number, got inf"),
        ({"strength": [0.5, -1.0]}, r"strength multiplies A and B each, .* got \[0.5, -1\]"),
        ({"weights": {"a": {".*": float("nan")}}}, "a must be a finite number, got nan"),
        ({"strength": "much"}, "expected a number, got 'much'"),
    ],
    ids=str,
)
def test_numbers_that_no_module_could_have_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_method("ties", **changes)


@pytest.mark.parametrize(
    ("strength", "told"),
    [
        ([1], "strength must have at least two numbers over the depth, or a pattern, got \\[1\\]"),
        ({".*": float("inf")}, "strength must be a finite number, got inf"),
        (["much", 1.0], "expected a number, got \\['much', 1.0\\]"),
        ([True, 1.0], "expected a number, got \\[True, 1.0\\]"),
        ([10**400, 1], "expected a number, got \\[1000"),
        ({1: 2, 3: 4}, "pattern '1' matches no module"),
    ],
    ids=range(6),
)
def test_a_function_takes_no_such_numbers_either(strength: Any, told: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){told}.*\(merge\.params\.strength\)"):
        merge_models(random_experts("ab", LAYERS), read_method("tsv_m", params__strength=strength))


def test_a_function_that_collects_over_the_model_has_one_strength(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_collecting.py").write_text(
        "def count(modules, strength): return strength\ndef merge(pairs, collected, strength): return pairs[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"name": "mine", "_target_": "my_collecting.merge", "collect": "my_collecting.count"}
    with pytest.raises(
        UserError, match=r"must be one number, since my_collecting\.count is called once for all modules"
    ):
        build_method({**mine, "params": {"strength": [0.0, 1.0]}})


@pytest.mark.parametrize("method", [read_method("tsv_m_lines"), read_method("ties", weights={"a": [0, 1]})])
def test_one_module_alone_takes_no_list(method: AnyMethod) -> None:
    pairs = {expert: pairs["layers.0.q"] for expert, pairs in draw(0).items()}
    with pytest.raises(UserError, match="one module alone has no depth: merge the whole model"):
        merge_pairs(pairs, method, "layers.0.q")


def test_a_list_needs_layers() -> None:
    with pytest.raises(UserError, match=r"goes over numbered layers, as in layers.3., and there are only 'head'"):
        merge_models(random_experts("ab", ("head",)), read_method("ties", strength=[0.5, 1.0]))


# --- folders, recipes, the command -------------------------------------------------------------------------------


def test_a_merge_of_folders_says_the_numbers_and_has_an_address_of_its_own(tmp_path: Path) -> None:
    folders = {name: write_expert(tmp_path / name, pairs) for name, pairs in random_experts("ab").items()}
    there, back = (dict(order) for order in ([(".*0.*", 0.5), (".*", 1.0)], [(".*", 1.0), (".*0.*", 0.5)]))
    method, other = (read_method("task_arithmetic", space="delta", strength=s) for s in (there, back))
    assert address_of(tmp_path, method, folders).path != address_of(tmp_path, other, folders).path  # the first decides
    identity = json.loads(json.dumps(settings_in_identity(method), sort_keys=True))
    assert build_method(identity).strength == method.strength != other.strength
    said: list[str] = []
    record = write_merged(tmp_path / "merged", method, folders, said.append)
    assert "strength {.*0.*: 0.5, .*: 1} in delta, norm" in said[0]
    assert record["effective_strength"] is None
    assert "strength {.*0.*: 0.5, .*: 1} in delta." in (tmp_path / "merged" / "README.md").read_text()
    with pytest.raises(UserError, match="pattern 'vision' matches no module"):
        merge_folders(folders, read_method("ties", weights={"a": {"vision": 1.0}}), tmp_path / "no", **QUIET)


def test_the_command_and_a_recipe_take_lists_and_patterns(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    experts = random_experts("ab")
    for name, pairs in experts.items():
        write_expert(tmp_path / name, pairs)
    Path("recipe.yaml").write_text(
        "experts: {a: a, b: b}\nweights: {a: {'.*0.q': 2.0, default: 0.0}}\n"
        "method: {name: task_arithmetic, space: delta, strength: [1.0, 3.0]}\nout: from_recipe\n"
    )
    main(["merge", "recipe.yaml"])
    main(["merge", "task_arithmetic", "a", "b", "-o", "typed", "--set", "space=delta", "strength=[1.0, 3.0]",
          "weights={a: {.*0.q: 2.0, default: 0.0}}"])  # fmt: skip
    assert "effective factor     by module (strength [1, 3])" in capsys.readouterr().out
    for folder in ("from_recipe", "typed"):
        merged = open_adapter(Path(folder))
        for module, (strength, weight) in {"layers.0.q": (1, 2), "layers.1.q": (3, 0)}.items():
            a, b = (experts[name][module].delta() for name in "ab")
            torch.testing.assert_close(merged.pair(module).delta(), strength * (weight * a + b))
