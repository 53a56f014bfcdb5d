"""YAML from a user: a mapping of plain values, or one message that names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustmerge.method import METHODS, read_method
from robustmerge.stage.settings import UserError
from robustmerge.stage.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: [", "line 2 cannot be read as a method file: expected the node content"),
        ("a: !!python/object/apply:os.system [ls]", r"line 1 .*tags \(!x\) and aliases \(\*x\) are not read"),
        ("a: !!bool maybe", "tags"),
        ("a: &a [1]\nb: [*a, *a]", "line 2 .*aliases"),
        ("a: " + "[" * 400, "nested too deeply"),
        ("a: " + "x" * 200_000, "it has 200003 characters, more than 100000"),
        ("a: " + "9" * 5000, "limit"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ('a: "\\ud800"', "surrogates not allowed"),
        ("a: \x1b[2J", "special characters are not allowed"),
        *((text, "it must hold a mapping of names") for text in ("", "[1]", "hello", "5: x")),
    ],
)
def test_what_is_no_mapping_of_plain_values_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"(?s)m\.yaml.*{reason}"):
        read_yaml(tmp_path / "m.yaml", "a method file")


@pytest.mark.parametrize("defaults", ["[nope]", "5", "[5]", "[[ties]]", "[../../x]", "[m]", "{ties: 1}", "ties"])
def test_a_method_file_builds_on_files_of_the_repository_only(defaults: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"defaults: {defaults}\nname: m\n")
    with pytest.raises(UserError, match=r"m\.yaml: defaults"):
        read_method(tmp_path / "m.yaml")


def test_files_that_build_on_one_another_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in {"a": "b", "b": "a", "c": "c"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"defaults: [{other}]\n")
    monkeypatch.setattr("robustmerge.method.METHODS", tmp_path)
    for name in "ac":
        with pytest.raises(UserError, match="defaults: unknown method"):
            read_method(tmp_path / f"{name}.yaml")


def test_a_number_of_hundreds_of_digits_is_no_strength(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"defaults: [ties, _self_]\nstrength: {10**400}\n")
    with pytest.raises(UserError, match=r"expected a number, got 1000.*\(merge\.strength\)"):
        read_method(tmp_path / "m.yaml")
    assert read_method(METHODS / "ties.yaml") == read_method("ties")
