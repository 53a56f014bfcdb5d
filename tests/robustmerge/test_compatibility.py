"""Which experts can be merged with which, and what is said of those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.compatibility import find_disagreements
from robustmerge.merging import open_experts
from robustmerge.method import read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import random_experts, rewrite_tensors, save_expert, write_expert

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes lora_B's bias for a damaged matrix


def test_dora_and_plain_experts_are_not_mixed(tmp_path: Path) -> None:
    for name, config in {"a": {}, "b": {"use_dora": True}, "c": {"lora_bias": True}}.items():
        save_expert(tmp_path / name, **config)
    adapters = [open_adapter(tmp_path / name) for name in "abc"]
    assert find_disagreements(adapters, equal_ranks=True) == [
        "only some experts have a DoRA magnitude (use_dora): b; without: a, c; merge them apart",
        "only some experts have a bias of the update (lora_bias): c; without: a, b; merge them apart",
    ]
    assert find_disagreements(adapters[1:2], equal_ranks=True) == []


def test_another_base_model_is_refused_unless_it_is_not_to_be_checked(tmp_path: Path, monkeypatch) -> None:
    pairs = random_experts("a")["a"]
    bases = {"a": "org/base", "b": "org/other", "c": "org/base"}
    adapters = [
        open_adapter(write_expert(tmp_path / name, pairs, base_model_name_or_path=base)) for name, base in bases.items()
    ]
    assert find_disagreements(adapters, equal_ranks=True) == [
        "expert 'b' has base_model_name_or_path org/other, the others org/base; merge.check_base=false merges them "
        "all the same"
    ]
    assert find_disagreements(adapters, equal_ranks=True, check_base=False) == []
    tips = [
        open_adapter(write_expert(tmp_path / f"tip{n}", pairs, revision=revision))
        for n, revision in enumerate([None, "main", "v1"])
    ]
    assert find_disagreements(tips[:2], equal_ranks=True) == []
    assert "has revision v1" in find_disagreements(tips, equal_ranks=True)[0]
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    here = [
        open_adapter(write_expert(tmp_path / f"here{n}", pairs, base_model_name_or_path=base, modules_to_save=saved))
        for n, (base, saved) in enumerate({"base": None, f"{tmp_path}/base": [], "./base/": None}.items())
    ]
    assert find_disagreements(here, equal_ranks=True) == []


def test_alphas_dtypes_and_rslora_may_differ_and_ranks_where_the_space_allows_it(tmp_path: Path) -> None:
    save_expert(tmp_path / "a", r=2, use_rslora=True)
    save_expert(tmp_path / "b", r=5, alpha_pattern={"q": 9})
    rewrite_tensors(tmp_path / "b", lambda tensors: {name: x.half() for name, x in tensors.items()})
    adapters = [open_adapter(tmp_path / name) for name in "ab"]
    assert find_disagreements(adapters, equal_ranks=False) == []
    assert find_disagreements(adapters, equal_ranks=True) == ["expert 'b' has rank 5, expert 'a' 2"]


@pytest.mark.parametrize(
    ("name", "changes", "way"),
    [
        ("task_arithmetic", {}, "take merge.space=delta, knots or core, or merge.product=each"),
        ("ties", {}, "take merge.space=delta, knots or core"),
        ("robustmerge", {}, "take merge.product=each"),
    ],
)
def test_experts_of_different_ranks_are_refused_with_a_way_that_this_method_has(
    tmp_path: Path, name: str, changes: dict, way: str
) -> None:
    for expert, rank in {"a": 2, "b": 5}.items():
        write_expert(tmp_path / expert, random_experts(expert, rank=rank)[expert])
    folders = {expert: tmp_path / expert for expert in "ab"}
    with pytest.raises(UserError) as refused:
        open_experts(folders, read_method(name, **changes))
    assert str(refused.value) == f"expert 'b' has rank 5, expert 'a' 2; in factor space ranks must be equal: {way}"
    keys = {"space": ["delta", "knots", "core"] if "space" in way else [], "product": ["each"] if "each" in way else []}
    for key, value in ((key, value) for key, values in keys.items() for value in values):
        open_experts(folders, read_method(name, **{key: value, "strength": 1.0}))


def test_of_many_modules_that_differ_a_few_are_told(tmp_path: Path) -> None:
    modules = tuple(f"layers.{n}.q" for n in range(20))
    here = random_experts("ab", modules)
    for name, rank in {"a": 4, "b": 2}.items():
        pairs = {m: LoraPair(p.A[:rank], p.B[:, :rank]) if i < 10 else p for i, (m, p) in enumerate(here[name].items())}
        if name == "a":
            pairs = {m: LoraPair(p.A[:2], p.B[:, :2]) if i >= 10 else p for i, (m, p) in enumerate(pairs.items())}
        patterns = {m: p.rank for m, p in pairs.items()}
        write_expert(tmp_path / name, pairs, rank_pattern=patterns)
    problems = find_disagreements([open_adapter(tmp_path / name) for name in "ab"], equal_ranks=True, remedy="do this")
    assert len(problems) == 6
    assert problems[0] == "expert 'b' has rank in module 'layers.0.q' 2, expert 'a' 4"
    assert problems[-1] == "(and 15 more); do this"
