"""Functions of one's own as methods: what they are given, what is refused, and which edits make another result."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import open_adapter
from robustmerge.function_source import digest_functions
from robustmerge.merging import write_merged
from robustmerge.method import build_method, read_method
from robustmerge.stage.settings import ConfigError, UserError
from tests.merge_cases import QUIET, address_of, random_experts, write_expert

MINE = """
from robustmerge.low_rank import concatenate
def first(pairs, times): return concatenate(pairs[:1], [times])
def dense(pairs): return pairs[0].delta()
def count(modules, share): return sum(len(pairs) for _, pairs in modules) * share
def counted(pairs, share, collected): return concatenate(pairs[:1], [collected])
def unknown(pairs, times: "Absent"): return concatenate(pairs[:1], [times])
def literal(pairs, times: __import__("typing").Literal[2]): return concatenate(pairs[:1], [times])
def plain(pairs, times: float | None): return concatenate(pairs[:1], [times])
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
    for annotated in ("unknown", "literal", "plain"):
        write_merged(tmp_path / annotated, replace(method, target=f"my_methods.{annotated}"), folders, **QUIET)
    wrong = replace(method, target="my_methods.plain", params={"times": "x"})
    with pytest.raises(ConfigError, match=r"expected a number, got 'x' \(merge.params.times\)"):
        write_merged(tmp_path / "no", wrong, folders, **QUIET)
    dense = build_method({"name": "dense", "_target_": "my_methods.dense", "out": {"rank": 2}})
    assert write_merged(tmp_path / "cut", dense, folders, **QUIET)["ranks"] == [2]
    with pytest.raises(UserError, match=r"a dense update \[7, 10\] is no adapter; give the rank to cut it to"):
        write_merged(tmp_path / "no", build_method({"name": "d", "_target_": "my_methods.dense"}), folders, **QUIET)
    before = address_of(tmp_path, method, folders)
    (tmp_path / "my_methods.py").write_text(MINE.replace("pairs[:1], [times]", "pairs[1:2], [times]"))
    edited = build_method({"name": "first", "_target_": "my_methods.first", "params": {"times": 3.0}})
    assert address_of(tmp_path, edited, folders).path != before.path
    with pytest.raises(UserError, match="my_methods.first was edited after this process imported it"):
        write_merged(tmp_path / "no", edited, folders, **QUIET)


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


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot find 'nowhere.merge'.*\(merge._target_\)"):
        build_method({"name": "x", "_target_": "nowhere.merge"})
    with pytest.raises(ConfigError, match="it names no function of a module"):
        build_method({"name": "x", "_target_": "merge"})
    with pytest.raises(ConfigError, match=r"no function 'mrge'; .*\(did you mean 'merge'\?\) \(merge._target_\)"):
        read_method("swudi", _target_="robustmerge.beyond.swudi.mrge")


@pytest.mark.parametrize("broken", ["my_broken.py", "my_helper.py"])
def test_a_function_whose_source_cannot_be_parsed_is_refused(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / broken.replace(".py", "_package")  # of its own: Python remembers the folders of packages
    package.mkdir()
    (package / "my_helper.py").write_text("def double(update): return 2 * update\n")
    (package / "my_broken.py").write_text("from .my_helper import double\ndef merge(pairs): return double(pairs)\n")
    (package / broken).write_text("def merge(pairs:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"cannot find '.*\.my_broken\.merge': .*{broken}, line 1"):
        build_method({"name": "x", "_target_": f"{package.name}.my_broken.merge"})


def test_many_definitions_and_circles_of_imports_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_circle"
    package.mkdir()
    chain = "".join(f"def f{n}(x): return f{n + 1}(x)\n" for n in range(2000))
    (package / "one.py").write_text(f"from .two import f2000, lost\n{chain}def merge(pairs): return f0(lost(pairs))\n")
    (package / "two.py").write_text("from .one import lost\ndef f2000(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(digest_functions({"_target_": "my_circle.one.merge"})) == 64


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
def count(modules, times): ...
def counted(pairs, times, collected): ...
@functools.cache
def decorated(pairs, anything): ...
assigned = functools.partial(plain, times=2.0)
from math import sqrt as imported
if True:
    def inside(pairs, **params): ...
"""


@pytest.mark.parametrize("name", ["plain", "many", "decorated", "assigned", "imported", "inside"])
def test_a_function_is_found_however_its_module_binds_it(name, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    build_method({"name": "x", "_target_": f"my_functions.{name}"})
    with pytest.raises(ConfigError) as refused:
        build_method({"name": "x", "_target_": f"my_functions.{name}", "collect": "my_functions.coutn"})
    assert list(map(str, refused.value.problems)) == [
        "module 'my_functions' has no function 'coutn'; choose one of count, counted, decorated, many, plain "
        "(did you mean 'count'?) (merge.collect)"
    ]


@pytest.mark.parametrize(
    ("functions", "params", "message"),
    [
        (["plain"], {"time": 1.0}, "plain: missing a required argument: 'times'; .* it takes times, share"),
        (["plain"], {"times": 1.0, "shares": 2.0}, "plain: got an unexpected keyword argument 'shares'"),
        (["plain", "count"], {"times": 1.0}, "plain: got an unexpected keyword argument 'collected'"),
        (["counted", "count"], {"times": 1.0, "share": 2.0}, "counted: got an unexpected keyword argument 'share'"),
        (["many", "count"], {"tmes": 1.0}, "count: missing a required argument: 'times'"),
    ],
    ids=str,
)  # fmt: skip
def test_params_that_a_function_does_not_take_are_refused_before_anything_is_written(
    functions: list[str], params: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    named = {key: f"my_functions.{f}" for key, f in zip(("_target_", "collect"), functions, strict=False)}
    folders = {k: write_expert(tmp_path / k, p) for k, p in random_experts().items()}
    with pytest.raises(UserError, match=rf"{message}.*\(merge.params\)"):
        write_merged(tmp_path / "no", build_method({"name": "x", **named, "params": params}), folders, **QUIET)
    assert not (tmp_path / "no").exists()


PACKAGE = {
    "rule": """
from math import sqrt

import torch

from my_package import helpers
from my_package.helpers import half as by_two
from my_package.tables import *

LIMIT = 3.0
OTHER = 4.0


def merge(pairs, strength: OTHER = 1.0):
    \"\"\"Merge.\"\"\"
    if strength > LIMIT:
        raise ValueError("too strong")  # why not
    return helpers.scale(by_two(strength)) * TABLE["x"]


def unrelated():
    return 1
""",
    "helpers": """
SHARED = 2


def half(x):

    return x / SHARED


def scale(x):
    text = "# no comment"
    return x


def unused(x):
    return x
""",
    "tables": """
TABLE = {}


def double(x):
    return 2 * x


TABLE["x"] = double
""",
}


@pytest.mark.parametrize(
    ("module", "before", "after", "is_same"),
    [
        ("rule", '"""Merge."""', '"""Merge all modules."""', True),
        ("rule", '    """Merge."""\n', "", True),
        ("rule", "  # why not", "  # because", True),
        ("rule", '"too strong"', '"much too strong"', True),
        ("rule", "strength: OTHER", "strength: float", False),
        ("rule", "OTHER = 4.0", "OTHER = 5.0", True),
        ("rule", "return 1", "return 2", True),
        ("rule", "LIMIT = 3.0", "LIMIT = 5.0", False),
        ("rule", "> LIMIT", ">= LIMIT", False),
        ("rule", "from math import sqrt", "from math import cos", True),
        ("rule", "helpers import half", "helpers import unused", False),
        ("helpers", "x / SHARED", "SHARED / x", False),
        ("helpers", "SHARED = 2", "SHARED = 3", False),
        ("helpers", '"# no comment"', '"# a text"', False),
        ("helpers", "def half(x):\n\n", "def half(x):\n", True),
        ("helpers", "def unused(x):\n    return x", "def unused(x):\n    return -x", True),
        ("tables", "2 * x", "3 * x", False),
        ("tables", 'TABLE["x"]', 'TABLE["y"]', False),
    ],
    ids=str,
)  # fmt: skip
def test_only_an_edit_of_what_a_function_computes_with_makes_it_another(
    module: str, before: str, after: str, is_same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)

    def digest(package: dict[str, str]) -> str:
        folder = tmp_path / "my_package"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        for name, text in package.items():
            (folder / f"{name}.py").write_text(text)
        return digest_functions({"_target_": "my_package.rule.merge", "collect": None})

    assert before in PACKAGE[module]
    edited = {**PACKAGE, module: PACKAGE[module].replace(before, after)}
    assert (digest(PACKAGE) == digest(edited)) == is_same
