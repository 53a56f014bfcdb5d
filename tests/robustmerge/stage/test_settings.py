"""Dataclasses from configs: every mistake is named, with its key and the choices. Needs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from robustmerge.stage.settings import ConfigError, Problem, UserError, build, choose


@dataclass(frozen=True)
class Prune:
    rule: str = "none"
    density: float = 1.0

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ConfigError(Problem(f"density must be in (0, 1], got {self.density}"))


@dataclass(frozen=True)
class Method:
    name: str
    prune: Prune = field(default_factory=Prune)
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] | None = None


def problems_of(values: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(Method, values, "merge")
    return list(map(str, caught.value.problems))


def test_nested_values_are_built_and_coerced():
    made = build(Method, {"name": "ties", "prune": {"density": 1}, "sizes": [1, 2.0], "weights": {"a": 1}}, "merge")
    assert made == Method("ties", Prune(density=1.0), (1, 2), {"a": 1.0})


def test_a_misspelt_key_is_named_with_the_choices_and_a_guess():
    (problem,) = problems_of({"name": "ties", "prune": {"densty": 0.2}})
    assert problem == (
        "unknown key 'densty'; choose one of density, rule (did you mean 'density'?) (merge.prune.densty)"
    )


def test_all_problems_are_told_at_once():
    told = problems_of({"nme": "ties", "prune": {"rule": 3}, "sizes": 4})
    assert len(told) == 4
    assert {"(merge.nme)", "(merge.name)", "(merge.prune.rule)", "(merge.sizes)"} == {t.split()[-1] for t in told}


def test_a_value_of_a_wrong_kind_is_not_replaced_by_a_default_that_would_be_refused():
    assert problems_of({"name": "x", "sizes": 4, "prune": "none"}) == [
        "expected a mapping, got 'none' (merge.prune)",
        "expected a list, got 4 (merge.sizes)",
    ]


def test_a_value_refused_by_the_dataclass_keeps_its_place():
    assert problems_of({"name": "x", "prune": {"density": 1.2}}) == ["density must be in (0, 1], got 1.2 (merge.prune)"]


@pytest.mark.parametrize(
    ("key", "where", "printed"),
    [
        ("density", "merge.prune", "wrong (merge.prune.density)"),
        ("prune.density", "merge", "wrong (merge.prune.density)"),
        ("limit, ids", "asked", "wrong (asked.limit, asked.ids)"),
        ("limit, ids", "", "wrong (limit, ids)"),
        ("", "merge", "wrong (merge)"),
        ("", "", "wrong"),
    ],
)
def test_a_problem_is_printed_with_the_whole_path_of_its_keys(key: str, where: str, printed: str) -> None:
    assert str(Problem("wrong", key).under(where)) == printed


@pytest.mark.parametrize("value", [True, "1", 1.5, None])
def test_a_whole_number_is_nothing_else(value):
    assert problems_of({"name": "x", "sizes": [value]}) == [f"expected a whole number, got {value!r} (merge.sizes[0])"]


def test_a_missing_value_is_asked_for():
    assert problems_of({"name": "???"}) == ["missing value (merge.name)"]


def test_an_unknown_name_is_answered_with_the_choices():
    with pytest.raises(UserError, match=r"unknown task 'vqa2'; choose one of rec, vqav2 \(did you mean 'vqav2'\?\)"):
        choose("vqa2", ["vqav2", "rec"], "task")
