"""Methods as data and the rules they name: tables, configs, thresholds, cuts to a rank, functions of one's own.

`pytest tests/test_methods.py`
"""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge import algebra
from robustmerge import method as method_file
from robustmerge.adapter import open_adapter
from robustmerge.algebra import merge_pairs
from robustmerge.merging import write_merged
from robustmerge.method import Method, Prune, build_method
from robustmerge.rules import COMBINE, PRUNE, kth_smallest, threshold_index
from robustmerge.runs import UserError
from robustmerge.settings import ConfigError
from robustmerge.spaces import SPACES, concatenate, truncate
from tests.merge_cases import QUIET, REPOSITORY, address_of, keep_largest, method_of, random_experts, write_expert

NUMBERS = st.floats(0, 2.0**100, width=32)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=40), share=st.floats(0, 1))
def test_the_kth_smallest_is_what_sorting_gives(values: list[float], share: float) -> None:
    k = 1 + int(share * (len(values) - 1))
    assert kth_smallest(torch.tensor(values), k) == sorted(np.float32(values))[k - 1]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 300), density=st.floats(0.01, 1), levels=st.integers(1, 50))
def test_exact_keeps_exactly_the_fraction_and_the_others_keep_equal_values_together(
    n: int, density: float, levels: int
) -> None:
    x = torch.randint(1, levels + 1, (1, n), generator=torch.Generator().manual_seed(n)).float()
    kept = {count: PRUNE["magnitude"](x, Prune("magnitude", density, count=count), [])[0] for count in
            ("exact", "authors", "released")}  # fmt: skip
    assert int(kept["exact"].sum()) == int(n * density)
    for count in ("authors", "released"):
        assert int(kept[count].sum()) >= int(n * density)
        if kept[count].any() and not kept[count].all():
            assert x[0][kept[count]].min() > x[0][~kept[count]].max()
    assert threshold_index(n, density, "authors") == n - int(n * density)


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


def test_every_merge_config_builds_and_has_a_first_line_that_uses_it() -> None:
    files = sorted((REPOSITORY / "configs" / "merge").glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        text = file.read_text()
        assert text.startswith(f"# bash scripts/merge_eval.sh merge={file.stem}\n")
        assert build_method(yaml.safe_load(text)).name == file.stem


def test_the_tables_hold_what_the_choices_say() -> None:
    assert tuple(SPACES) == method_file.SPACES
    assert tuple(PRUNE) == method_file.PRUNE_RULES
    assert tuple(COMBINE) == method_file.COMBINE_RULES


def test_all_mistakes_in_a_method_are_told_at_once_with_their_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        method_of("robustmerge", prune__density=1.2, combine="summ", scale__floor=1.0, space="delta")
    assert refused.value.problems == [
        "unknown combine 'summ'; choose one of mean, sum (did you mean 'sum'?) (merge.combine)",
        "density must be in (0, 1], got 1.2 (merge.prune.density)",
        "floor must be in [0, 1), got 1.0 (merge.scale.floor)",
        "strength must be given: merge.strengths lists no default for delta (merge.strength)",
        "scaling needs merge.space=factors, got space delta (merge.scale.B)",
        "a pruned update in space delta has full rank, which no adapter holds exactly; give the rank to cut it to, or "
        "merge in factors (merge.out.rank)",
    ]
    with pytest.raises(ConfigError, match="density 0.3 prunes nothing while prune.rule is none"):
        method_of("task_arithmetic", prune__density=0.3)
    with pytest.raises(ConfigError, match=r"unknown key 'densty'.*did you mean 'density'.*\(merge.prune.densty\)"):
        method_of("robustmerge", prune__densty=0.3)


def test_another_space_brings_the_strength_listed_beside_it_unless_one_is_given() -> None:
    assert method_of("task_arithmetic").strength == 0.55
    assert method_of("task_arithmetic", space="delta").strength == 0.3
    assert method_of("task_arithmetic", product="each").strength == 0.3
    assert method_of("task_arithmetic", space="delta", strength=0.7).strength == 0.7


MINE = """
from robustmerge.spaces import concatenate
def first(pairs, times): return concatenate(pairs[:1], [times])
def dense(pairs): return pairs[0].delta()
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
    with pytest.raises(UserError, match=r"my_methods.dense returned Tensor \[7, 10\]; an adapter needs a LoraPair"):
        write_merged(tmp_path / "no", build_method({"name": "d", "_target_": "my_methods.dense"}), folders, **QUIET)
    before = address_of(tmp_path, method, folders)
    (tmp_path / "my_methods.py").write_text(MINE + "# edited\n")
    edited = build_method({"name": "first", "_target_": "my_methods.first", "params": {"times": 3.0}})
    assert address_of(tmp_path, edited, folders).path != before.path


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot find 'nowhere.merge'.*\(merge._target_\)"):
        build_method({"name": "x", "_target_": "nowhere.merge"})
    with pytest.raises(ConfigError, match="it names no function of a module"):
        build_method({"name": "x", "_target_": "merge"})


@pytest.mark.parametrize("module", [algebra, method_file], ids=lambda module: module.__name__)
def test_the_examples_in_the_text_are_right(module: object) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)
