"""The search for weights: what it asks for, what it finds, and the row that it adds.

Needs no model: val scores are a function of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.report.results import CHOSEN, group_results
from eval.report.section_methods import format_methods_section
from pipeline.plan import Evaluation, Plan
from pipeline.stages.choose import check_choosing
from pipeline.stages.report import collect_results
from pipeline.weight_search import describe_found, search_weights
from robustmerge.method import AnyMethod, Method, read_method
from robustmerge.stage.records import Score
from robustmerge.stage.settings import ConfigError, UserError
from tests.pipeline.test_strengths import plan_with_val, write_scores
from tests.plans import finish_score, make_plan

BEST = {"a": 1.5, "b": 0.5, "c": 1.0}


def closeness(methods: Sequence[AnyMethod]) -> list[float]:
    """100 at the best weights, less the farther away."""
    logs = [[math.log(method.weights[name] / BEST[name]) for name in BEST] for method in methods if method.weights]
    return [100 - sum(x**2 for x in point) for point in logs]


def test_a_search_comes_near_to_the_best_weights_and_asks_for_no_more_than_its_budget() -> None:
    asked: list[int] = []

    def evaluate(methods: Sequence[Method]) -> list[float]:
        asked.append(len(methods))
        return closeness(methods)

    method = read_method("ties", space="delta")
    found = search_weights(method, list(BEST), 1.0, 200, evaluate)
    assert asked[0] == 1
    assert len(set(asked[1:])) == 1
    assert 200 - asked[1] < sum(asked) == len(found.tried) <= 200
    assert found.start == pytest.approx(closeness([found.tried[0]])[0])
    assert found.mean > 99.99
    assert found.weights == pytest.approx(BEST, rel=0.05)
    assert found.method.weights == found.weights
    assert found.tried == search_weights(method, list(BEST), 1.0, 200, closeness).tried
    text = describe_found(found)
    assert f"100.0 against {found.start:.1f} at the start, {len(found.tried)} merges tried" in text


def test_a_search_begins_with_the_weights_given_and_at_the_factor_given() -> None:
    method = read_method("robustmerge", weights={"a": 2.0})
    found = search_weights(method, list(BEST), 4.0, 1, closeness)
    (only,) = found.tried
    assert only.weights == {"a": 2.0, "b": 1.0, "c": 1.0}
    assert only.strength == 2 * method.strength, "A and B are multiplied each"


def write_val_scores(plan: Plan, methods: Sequence[AnyMethod]) -> list[float]:
    """Scores that are higher the more vqav2 weighs, for the stages of merging, answering and scoring."""
    for method in methods:
        for one in plan.evaluate_on_val([method]):
            value = 50 + 10 * math.log((method.weights or {})["vqav2"])
            finish_score(
                Evaluation(plan, one.source, one.eval_set),
                Score(one.task.name, one.task.metric, value, 1, 1, 0, 0, 0, {}),
            )
    return plan.val_means(methods)


def test_what_is_found_follows_from_the_val_scores_and_is_a_row_and_a_source(tmp_path: Path) -> None:
    words = ["methods=[ties,dare]", "weight_search=[ties]", "search_budget=25"]
    plan = plan_with_val(tmp_path, *words)
    write_scores(plan, lambda method, factor: 30.0 if factor == 0.5 else 20.0)
    with pytest.raises(UserError, match=r"val scores are missing, by which weights are searched.*(?s:.)*weight_search"):
        plan.sources  # noqa: B018
    found = plan.search("ties", lambda methods: write_val_scores(plan, methods))
    start = plan.merged(found.tried[0])
    assert start == plan.merged(plan.candidate_methods["ties"][0.5]), "it begins with the merge that was chosen"
    again = plan_with_val(tmp_path, *words)
    assert again.searches["ties"] == found
    assert found.weights["vqav2"] > 1
    names = [source.label for source in again.sources if source.kind == "merged"]
    assert names == ["merged/ties", "merged/ties@chosen", "merged/ties@searched", "merged/dare", "merged/dare@chosen"]
    searched = again.find_source("merged/ties@searched")
    assert searched.address == again.merged(found.method)
    assert searched.title == "TIES, weights searched"
    assert {a.path for a in again.choosing_addresses()} >= {again.merged(method).path for method in found.tried}


def test_a_search_that_finds_nothing_better_is_a_row_beside_the_same_merge_at_its_default(tmp_path: Path) -> None:
    plan = plan_with_val(tmp_path, "methods=[ties]", "weight_search=[ties]", "search_budget=25", grid="[1.0]")
    write_scores(plan, lambda method, factor: 30.0)

    def worse(methods: Sequence[AnyMethod]) -> list[float]:
        for one in plan.evaluate_on_val(methods):
            if not one.score.is_complete():
                finish_score(one, Score(one.task.name, one.task.metric, 10.0, 1, 1, 0, 0, 0, {}))
        return plan.val_means(methods)

    plan.search("ties", worse)
    merged = [source for source in plan.sources if source.kind == "merged"]
    assert [source.label for source in merged] == ["merged/ties", "merged/ties@chosen", "merged/ties@searched"]
    assert len({source.address.path for source in merged}) == 1
    for one in plan.evaluations:
        finish_score(one, Score(one.task.name, one.task.metric, 50.0, 1, 1, 0, 0, 0, {"q": 1.0}))
    rows = [result for result in collect_results([plan]) if result.kind == "merged"]
    assert [(row.source, row.variant, row.search is not None) for row in rows] == [
        ("merged/ties", "", False), ("merged/ties", CHOSEN, False), ("merged/ties@searched", CHOSEN, True),
    ]  # fmt: skip
    section = format_methods_section(group_results(rows))
    assert "### Weights searched on val" in section and "TIES, weights searched | 0 | 21 | 30.0 | 30.0 |" in section


def test_a_budget_without_a_generation_is_refused_before_anything_is_merged(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "methods=[ties]", "weight_search=[ties]", "search_budget=10")
    with pytest.raises(UserError, match=r"search_budget must be at least 21: .* for 8 experts, got 10"):
        plan.check_methods()


def test_choosing_where_nothing_is_free_is_refused(tmp_path: Path) -> None:
    check_choosing([make_plan(tmp_path, "strength_grid=[0.5]", "methods=[ties]")])
    with pytest.raises(UserError, match="there is nothing to choose"):
        check_choosing([make_plan(tmp_path, "strength_grid=null", "methods=[ties]")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weight_search=[tise]"], "'tise' is not one of the methods; .*did you mean 'ties'"),
        (["methods=[iso_c]", "weight_search=[iso_c]"], "iso_c is a function, which has no weights"),
        (["merge=ties", "merge.strength=[0.5,1.0]", "weight_search=[ties]"], "differ by module here: ties"),
        (["search_budget=0"], "search_budget must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_searched_is_told(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(tmp_path, *words)
