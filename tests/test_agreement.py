"""Which experts can be merged with which, and what is said of those that cannot. `pytest tests/test_agreement.py`"""

from __future__ import annotations

from pathlib import Path

import pytest

from robustmerge.adapter import open_adapter
from robustmerge.agreement import disagreements
from tests.merge_cases import random_experts, rewrite_tensors, save_expert, write_expert

pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes lora_B's bias for a damaged matrix


def test_dora_and_plain_experts_are_not_mixed(tmp_path: Path) -> None:
    for name, config in {"a": {}, "b": {"use_dora": True}, "c": {"lora_bias": True}}.items():
        save_expert(tmp_path / name, **config)
    adapters = [open_adapter(tmp_path / name) for name in "abc"]
    assert disagreements(adapters, equal_ranks=True) == [
        "only some experts have a DoRA magnitude (use_dora): b; without: a, c; merge them apart",
        "only some experts have a bias of the update (lora_bias): c; without: a, b; merge them apart",
    ]
    assert disagreements(adapters[1:2], equal_ranks=True) == []


def test_another_base_model_is_refused_unless_it_is_not_to_be_checked(tmp_path: Path, monkeypatch) -> None:
    pairs = random_experts("a")["a"]
    bases = {"a": "org/base", "b": "org/other", "c": "org/base"}
    adapters = [
        open_adapter(write_expert(tmp_path / name, pairs, base_model_name_or_path=base)) for name, base in bases.items()
    ]
    assert disagreements(adapters, equal_ranks=True) == [
        "expert 'b' has base_model_name_or_path org/other, the others org/base; merge.check_base=false merges them "
        "all the same"
    ]
    assert disagreements(adapters, equal_ranks=True, check_base=False) == []
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    here = [
        open_adapter(write_expert(tmp_path / f"here{n}", pairs, base_model_name_or_path=base, modules_to_save=saved))
        for n, (base, saved) in enumerate({"base": None, f"{tmp_path}/base": [], "./base/": None}.items())
    ]
    assert disagreements(here, equal_ranks=True) == []


def test_alphas_dtypes_and_rslora_may_differ_and_ranks_where_the_space_allows_it(tmp_path: Path) -> None:
    save_expert(tmp_path / "a", r=2, use_rslora=True)
    save_expert(tmp_path / "b", r=5, alpha_pattern={"q": 9})
    rewrite_tensors(tmp_path / "b", lambda tensors: {name: x.half() for name, x in tensors.items()})
    adapters = [open_adapter(tmp_path / name) for name in "ab"]
    assert disagreements(adapters, equal_ranks=False) == []
    assert disagreements(adapters, equal_ranks=True) == ["expert 'b' has rank 5, the others 2"]
