"""Methods as data and the rules they name: tables, configs, ablations, cuts to a rank, functions of one's own."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.program import compose
from robustmerge import algebra, method, pcb
from robustmerge import method as method_file
from robustmerge.algebra import merge_models, merge_pairs
from robustmerge.formats.adapter import open_adapter
from robustmerge.low_rank import concatenate, truncate
from robustmerge.merging import write_merged
from robustmerge.method import (
    METHODS,
    Balance,
    Basis,
    Method,
    Out,
    Prune,
    Scale,
    build_method,
    list_methods,
    read_method,
)
from robustmerge.rules import COMBINE, PRUNE
from robustmerge.spaces import SPACES
from robustmerge.stage.settings import ConfigError, UserError
from tests.merge_cases import QUIET, address_of, keep_largest, random_experts, write_expert


def test_a_cut_to_rank_is_the_best_approximation_for_pairs_and_dense_updates() -> None:
    pair = concatenate([modules["layers.0.q"] for modules in random_experts(rank=2).values()], [1.0, 2.0, 3.0])
    u, s, v = torch.linalg.svd(pair.delta(), full_matrices=False)
    best = u[:, :3] * s[:3] @ v[:3]
    torch.testing.assert_close(truncate(pair, 3).delta(), best)
    torch.testing.assert_close(truncate(pair.delta(), 3).delta(), best)
    assert truncate(pair, 6) is pair


def test_pruned_updates_in_delta_space_are_cut_to_the_rank_asked_for() -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    method = Method("m", "delta", 1.0, prune=Prune("magnitude", 0.3), out=method_file.Out(rank=7))
    expected = sum(keep_largest(p.delta(), 0.3) for p in pairs.values())
    torch.testing.assert_close(merge_pairs(pairs, method).delta(), expected)


@pytest.mark.parametrize("name", list_methods())
def test_a_method_file_is_the_same_method_with_and_without_hydra(name: str) -> None:
    text = (METHODS / f"{name}.yaml").read_text()
    assert text.startswith(f"# bash scripts/merge_eval.sh merge={name}\n")
    method = read_method(name)
    assert build_method(compose("merge", [f"merge={name}"])["merge"]) == method
    assert method.name == name
    assert method.title
    assert method.paper.startswith("https://")


def test_the_methods_of_the_paper_and_beyond_are_here() -> None:
    paper = "robustmerge robustmerge_eq5 average task_arithmetic ties dare dare_ties pcb knots_ties knots_dare_ties svd"
    beyond = "tsv_m iso_c swudi dc_merge compress_then_merge"
    assert set(list_methods()) >= {*paper.split(), *beyond.split()}


def test_the_neutral_file_lists_every_key_at_its_default() -> None:
    """A method file that forgets a key gets what the dataclass says, and what the file shows is what holds."""
    neutral = yaml.safe_load((METHODS / "_neutral.yaml").read_text())
    method = build_method({**neutral, "name": "neutral", "strength": 1.0})
    assert method == Method(name="neutral", strength=1.0)
    assert set(neutral) | {"name", "title", "paper"} == {field.name for field in dataclasses.fields(Method)}
    nested = {"prune": Prune(), "scale": Scale(), "balance": Balance(), "basis": Basis(), "out": Out()}
    for key, default in nested.items():
        assert neutral[key] == dataclasses.asdict(default)


def test_thresholds_cover_what_is_usual_in_a_space_unless_it_is_said() -> None:
    usual = {space: read_method("ties", space=space).prune.scope for space in method.SPACES}
    assert usual == {"factors": "tensor", "delta": "model", "knots": "model", "core": "tensor"}
    assert read_method("ties", prune__scope="model").prune.scope == "model"


def test_a_change_in_python_is_the_same_override_on_the_command_line() -> None:
    composed = compose("merge", ["merge=ties", "merge.space=delta", "merge.prune.density=0.1"])["merge"]
    assert build_method(composed) == read_method("ties", space="delta", prune__density=0.1)


def test_the_tables_hold_what_the_choices_say() -> None:
    assert tuple(SPACES) == method.SPACES
    assert tuple(PRUNE) == method.PRUNE_RULES
    assert tuple(COMBINE) == method.COMBINE_RULES
    assert tuple(pcb.CLAMP) == method.VARIANTS


def test_all_mistakes_in_a_method_are_told_at_once_with_their_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        read_method("robustmerge", prune__density=1.2, combine="summ", scale__floor=1.0, space="delta",
                  out__format="adapter")  # fmt: skip
    assert list(map(str, refused.value.problems)) == [
        "unknown combine 'summ'; choose one of balanced, elected, mean, sum (did you mean 'sum'?) (merge.combine)",
        "density must be in (0, 1], got 1.2 (merge.prune.density)",
        "floor must be in [0, 1), got 1.0 (merge.scale.floor)",
        "scaling works on A and B apart, so it needs merge.space=factors, got space delta (merge.scale.B)",
        "a pruned or elected update in space delta has full rank, which no adapter holds exactly; give the rank to cut "
        "it to, merge.out.rank=R, or take delta (merge.out.format)",
    ]


@pytest.mark.parametrize(
    ("name", "changes", "problems"),
    [
        ("robustmerge", {"space": "dleta"},
         ["unknown space 'dleta'; choose one of core, delta, factors, knots (did you mean 'delta'?) (merge.space)"]),
        ("robustmerge_eq5", {"product": "eahc"},
         ["unknown product 'eahc'; choose one of each, of_sums (did you mean 'each'?) (merge.product)"]),
        ("robustmerge_eq5", {"combine": "summ"},
         ["unknown combine 'summ'; choose one of balanced, elected, mean, sum (did you mean 'sum'?) (merge.combine)"]),
        ("robustmerge", {"space": "core"},
         ["scaling works on A and B apart, so it needs merge.space=factors, got space core (merge.scale.B)"]),
        ("dc_merge", {"out__rank": 0}, ["rank must be at least 1, got 0 (merge.out.rank)"]),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_and_nothing_that_follows_from_it(
    name: str, changes: dict, problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_method(name, **changes)
    assert list(map(str, refused.value.problems)) == problems


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("task_arithmetic", {"prune__density": 0.3}, "density 0.3 prunes nothing while prune.rule is none"),
        ("robustmerge", {"prune__densty": 0.3}, r"did you mean 'density'.*\(merge.prune.densty\)"),
        ("knots_ties", {"prune__count": "exact"}, r"count=exact needs a tensor that is held whole"),
        ("ties", {"product": "each", "strength": 1.0}, "product=each is a sum of products, got combine elected"),
        ("dare_ties", {"first__rule": "magnitude"}, r"unknown rule 'magnitude'.*\(merge.first.rule\)"),
        ("pcb", {"balance__variant": "es"}, r"unknown variant 'es'.*\(merge.balance.variant\)"),
        ("pcb", {"balance__density": 0}, r"density must be in \(0, 1\], got 0.0 \(merge.balance.density\)"),
        ("pcb", {"scale__B": "A", "prune__scope": "model"}, "scores over the whole model are measured before"),
        ("knots_ties", {"basis__cut": -1}, r"cut must be at least 0, got -1.0 \(merge.basis.cut\)"),
        ("ties", {"strength": float("nan")}, r"strength must be a finite number, got nan \(merge.strength\)"),
        ("svd", {"out__rank": 0}, r"rank must be at least 1, got 0 \(merge.out.rank\)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(name: str, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_method(name, **changes)


def test_another_space_brings_the_strength_listed_beside_it_unless_one_is_given() -> None:
    assert read_method("task_arithmetic").strength == 0.55
    assert read_method("task_arithmetic", space="delta").strength == 0.3
    assert read_method("task_arithmetic", product="each").strength == 0.3
    assert read_method("task_arithmetic", space="delta", strength=0.7).strength == 0.7


MINE = """
from robustmerge.low_rank import concatenate
def first(pairs, times): return concatenate(pairs[:1], [times])
def dense(pairs): return pairs[0].delta()
def count(modules, share): return sum(len(pairs) for _, pairs in modules) * share
def counted(pairs, share, collected): return concatenate(pairs[:1], [collected])
"""


def test_a_function_of_ones_own_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    experts = random_experts()
    folders = {k: write_expert(tmp_path / k, p) for k, p in experts.items()}
    method = build_method({"name": "first", "_target_": "my_methods.first", "params": {"times": 3.0}})
    write_merged(tmp_path / "merged", method, folders, **QUIET)
    expected = 3 * experts["a"]["layers.0.q"].delta()
    torch.testing.assert_close(open_adapter(tmp_path / "merged").pair("layers.0.q").delta(), expected)
    dense = build_method({"name": "dense", "_target_": "my_methods.dense", "out": {"rank": 2}})
    assert write_merged(tmp_path / "cut", dense, folders, **QUIET)["ranks"] == [2]
    with pytest.raises(UserError, match=r"a dense update \[7, 10\] is no adapter; give the rank to cut it to"):
        write_merged(tmp_path / "no", build_method({"name": "d", "_target_": "my_methods.dense"}), folders, **QUIET)
    before = address_of(tmp_path, method, folders)
    (tmp_path / "my_methods.py").write_text(MINE + "# edited\n")
    edited = build_method({"name": "first", "_target_": "my_methods.first", "params": {"times": 3.0}})
    assert address_of(tmp_path, edited, folders).path != before.path


def test_what_a_function_collects_over_the_model_is_the_same_in_memory_and_in_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_counting.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    functions = {"_target_": "my_counting.counted", "collect": "my_counting.count"}
    method = build_method({"name": "counted", **functions, "params": {"share": 0.5}})
    experts = random_experts()
    merged = merge_models(experts, method)
    write_merged(tmp_path / "merged", method, {k: write_expert(tmp_path / k, p) for k, p in experts.items()}, **QUIET)
    for module, pair in experts["a"].items():
        torch.testing.assert_close(merged[module].delta(), 3 * pair.delta())  # two modules of three experts, halved
        assert torch.equal(open_adapter(tmp_path / "merged").pair(module).delta(), merged[module].delta())


@pytest.mark.parametrize("name", list_methods())
def test_every_method_file_merges_one_module_in_a_notebook(name: str) -> None:
    pairs = {expert: modules["layers.0.q"] for expert, modules in random_experts(rank=2).items()}
    method = read_method(name, **({"prune__density": 1.0} if name.startswith("robustmerge") else {}))
    update = merge_pairs(pairs, method)
    assert (update.delta() if hasattr(update, "delta") else update).shape == (7, 10)


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot find 'nowhere.merge'.*\(merge._target_\)"):
        build_method({"name": "x", "_target_": "nowhere.merge"})
    with pytest.raises(ConfigError, match="it names no function of a module"):
        build_method({"name": "x", "_target_": "merge"})
    with pytest.raises(ConfigError, match=r"no function 'mrge'; .*\(did you mean 'merge'\?\) \(merge._target_\)"):
        read_method("swudi", _target_="robustmerge.beyond.swudi.mrge")


def test_an_error_in_a_function_of_ones_own_keeps_its_type_and_says_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "def merge(pairs): return {}[1]", "def count(modules): return 1 / 0", "def given(pairs, collected): ..."
    (tmp_path / "my_errors.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    folders = {k: write_expert(tmp_path / k, p) for k, p in random_experts().items()}
    described = {"_target_": "my_errors.merge"}, {"_target_": "my_errors.given", "collect": "my_errors.count"}
    notes = "my_errors.merge, module 'layers.0.q'", "my_errors.count"
    for functions, kind, note in zip(described, (KeyError, ZeroDivisionError), notes, strict=True):
        with pytest.raises(kind) as raised:
            write_merged(tmp_path / "no", build_method({"name": "x", **functions}), folders, workers=2, **QUIET)
        assert raised.value.__notes__ == [f"raised in the method's function {note}"]
        assert "my_errors.py" in str(raised.traceback[-1].path)


FUNCTIONS = """
import functools
def plain(pairs, times, *, share=1.0): ...
def many(pairs, **params): ...
def collect(modules, times): ...
def told(pairs, times, collected): ...
@functools.cache
def decorated(pairs): ...
assigned = functools.partial(plain, times=2.0)
def again(pairs): ...
again = plain
from math import sqrt as imported
if True:
    def inside(pairs, **params): ...
"""


@pytest.mark.parametrize(
    ("described", "problems"),
    [
        ({"_target_": "plain", "params": {"time": 1.0, "share": 2.0}},
         ["unknown key 'time' of my_functions.plain; choose one of share, times (did you mean 'times'?) "
          "(merge.params.time)", "missing value, which my_functions.plain needs (merge.params.times)"]),
        ({"_target_": "plain", "params": {"times": 1.0}}, []),
        ({"_target_": "plain", "collect": "collect", "params": {"times": 1.0}},
         ["my_functions.plain must take 'collected', which it is given where there is a collect (merge.collect)"]),
        ({"_target_": "told", "collect": "collect", "params": {"times": 1.0}}, []),
        ({"_target_": "told", "collect": "colect", "params": {"times": 1.0}},
         ["module 'my_functions' has no function 'colect'; choose one of again, collect, decorated, many, plain, told "
          "(did you mean 'collect'?) (merge.collect)"]),
        *(({"_target_": name, "params": {"anything": 1.0}}, [])
          for name in ("many", "decorated", "assigned", "again", "imported", "inside")),
    ],
    ids=str,
)  # fmt: skip
def test_the_settings_of_a_function_are_checked_before_anything_runs(
    described: dict, problems: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    names = {key: f"my_functions.{described[key]}" for key in ("_target_", "collect") if key in described}
    try:
        build_method({"name": "x", **described, **names})
        found = []
    except ConfigError as refused:
        found = list(map(str, refused.problems))
    assert found == problems


@pytest.mark.parametrize("module", [algebra, method_file], ids=lambda module: module.__name__)
def test_the_examples_in_the_text_are_right(module: object) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)
