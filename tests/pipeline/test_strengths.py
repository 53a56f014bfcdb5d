"""The strength chosen on val: the choice, the evaluations that it needs, the rows that it adds.

Needs nothing: the val scores are written by hand, in place of those that models would get.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.settings import Counts, TaskData
from eval.settings import Generation
from pipeline.plan import Evaluation, Plan
from pipeline.strengths import choose_strength, describe_choice, has_val
from robustmerge.method import Method, read_method
from robustmerge.stage.address import settings_in_identity
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError
from tests.law_cases import METHODS, assert_same, draw, dropping, merge
from tests.plans import finish_score, make_plan

GRID = (0.25, 0.5, 1.0, 2.0)


def plan_with_val(runs: Path, *words: str, grid: str = "[0.25,0.5,1.0,2.0]") -> Plan:
    """A smoke-sized plan under `runs` whose tasks have val questions."""
    plan = make_plan(runs, "profile=smoke", f"strength_grid={grid}", "multi_task=false", *words)
    for task in plan.config.seen:
        file = plan.questions(plan.val_set(task))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a question\n" if plan.config.data(task).counts.val else "")
    return plan


def write_scores(plan: Plan, value: Callable[[str, float], float]) -> None:
    """Every val score of the plan: `value(method, factor)` on each task."""
    for method, by_factor in plan.candidates.items():
        for factor, source in by_factor.items():
            for one in source.eval_sets:
                score = Score(one.task.name, one.task.metric, float(value(method, factor)), 1, 1, 0, 0, 0, {})
                finish_score(Evaluation(plan, source, one), score)


@given(st.dictionaries(st.sampled_from(GRID), st.sampled_from((10.0, 20.0, 30.0)), min_size=1), st.randoms())
def test_the_highest_mean_is_chosen_whatever_the_order_and_of_equals_the_nearest_to_the_default(means, random):
    order = random.sample(list(means), len(means))
    choice = choose_strength({factor: (f"{2 * factor:g}", means[factor]) for factor in order})
    assert means[choice.factor] == max(means.values())
    equals = [factor for factor, mean in means.items() if mean == max(means.values())]
    assert choice.factor == (1.0 if 1.0 in equals else 0.5 if 0.5 in equals else 2.0 if 2.0 in equals else 0.25)
    assert choice.strength == f"{2 * choice.factor:g}"
    assert choice.at_end == (choice.factor in (min(means), max(means)))


def test_means_that_differ_by_rounding_alone_are_equal():
    assert choose_strength({0.5: ("0.5", 42.00000000000001), 1.0: ("1", 42.0)}).factor == 1.0


def test_the_choice_is_told_with_the_default_beside_it_and_with_a_warning_at_the_end_of_the_grid():
    text = describe_choice(choose_strength({0.25: ("1", 10.0), 0.5: ("1.41", 38.2), 1.0: ("2", 35.0)}))
    assert text == "strength 1.41 (0.5 x the default's update) chosen on val: 38.2 against 35.0 at the default"
    text = describe_choice(choose_strength({0.5: ("1.41", 35.0), 1.0: ("2", 38.2)}))
    assert text.startswith("strength 2 (the default) chosen on val: 38.2; it is the grid's largest, more may be better")
    assert "against" not in describe_choice(choose_strength({0.5: ("1.41", 38.2), 2.0: ("2.8", 35.0)})), (
        "the default was not asked"
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_factor_multiplies_the_update_of_every_method(name):
    method, experts = dropping(METHODS[name]), draw(5)
    assert_same(merge(experts, method.with_factor(0.25)), merge(experts, method), times=0.25)


def test_a_factor_of_one_is_the_method_itself_and_a_method_without_a_strength_has_no_factor():
    for method in METHODS.values():
        assert method.with_factor(1.0) is method
    plain = METHODS["iso_c"].__class__("plain", "robustmerge.beyond.iso_c.merge")
    assert plain.strength is None
    with pytest.raises(UserError, match="plain has no strength to multiply"):
        plain.with_factor(0.5)


def test_in_factor_space_the_strength_is_multiplied_by_the_root():
    method = read_method("robustmerge").with_factor(0.25)
    assert isinstance(method, Method)
    assert (method.strength, method.effective_strength) == (1.0, 1.0)


def test_the_split_of_the_test_questions_is_no_part_of_an_address_and_that_of_val_is():
    test, val = (Generation("vqav2", "{text}", "plain", 4, 8, split) for split in ("test", "val"))
    assert "split" not in settings_in_identity(test)
    assert settings_in_identity(val)["split"] == "val"
    with pytest.raises(UserError, match="unknown split 'train'; choose one of test, val"):
        Generation("vqav2", "{text}", "plain", 4, 8, "train")


def test_every_method_has_a_second_row_at_its_chosen_strength(tmp_path):
    plan = plan_with_val(tmp_path, "methods=[ties,iso_c,robustmerge]")
    write_scores(plan, lambda method, f: {"ties": f, "iso_c": -f, "robustmerge": f == 0.5}[method])
    assert {name: choice.factor for name, choice in plan.choices.items()} == {
        "ties": 2.0,
        "iso_c": 0.25,
        "robustmerge": 0.5,
    }
    assert plan.choices["robustmerge"].strength == "1.41", "2 times the root of 0.5"
    assert plan.choices["ties"].means == dict(zip(GRID, GRID, strict=True))
    assert [name for name, choice in plan.choices.items() if choice.at_end] == ["ties", "iso_c"]
    rows = [(source.name, source.variant) for source in plan.sources if source.kind == "merged"]
    assert rows == [(f"merged/{name}", variant) for name in plan.choices for variant in ("", "chosen")]
    chosen = plan.find_source("merged/robustmerge@chosen")
    assert chosen in plan.sources
    assert chosen.tasks == plan.config.tasks, "unseen tasks too"
    assert chosen.address == plan.candidates["robustmerge"][0.5].address


def test_a_default_that_is_chosen_is_merged_once(tmp_path):
    plan = plan_with_val(tmp_path, "merge=ties")
    write_scores(plan, lambda method, factor: factor == 1.0)
    default, chosen = (source for source in plan.sources if source.kind == "merged")
    assert default.address == chosen.address
    assert (default.variant, chosen.variant) == ("", "chosen")


def test_only_seen_tasks_are_asked_for_a_choice_and_their_answers_lie_apart(tmp_path):
    plan = plan_with_val(tmp_path, "methods=[ties]")
    seen = {task.name for task in plan.config.seen}
    assert {one.task.name for one in plan.val_evaluations} == seen
    used = [address for address in plan.choosing_addresses() if not address.short.startswith("merged/ties-")]
    assert len(used) == 2 * len(GRID) * len(seen)
    assert all(address.short.startswith(("predictions/val/", "scores/val/")) for address in used)
    for one in plan.val_evaluations:
        test_set = plan.test_set(one.task)
        assert one.questions != plan.questions(test_set)
        assert one.predictions.fingerprint != plan.predictions(one.source, test_set).fingerprint


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        (["merge=ties", "merge.strength=0.7"], "[0.5,1.0]"),
        (["merge=ties", "merge.strength=1.0"], "[0.5,1.0]"),
        (["merge=iso_c", "merge.params.strength=0.7"], "[0.5,1.0]"),
        (["methods=[ties]", "benchmark.counts.val=0"], "[0.5,1.0]"),
        (["methods=[ties]", "tasks=[aokvqa,tabmwp]"], "[0.5,1.0]"),
        (["methods=[ties]"], "null"),
        (["methods=[ties]"], "[]"),
    ],
)
def test_nothing_is_chosen_where_the_user_chose_or_there_is_nothing_to_choose_by(tmp_path, words, grid):
    plan = plan_with_val(tmp_path, *words, grid=grid)
    assert plan.choices == {}
    assert plan.choosing_addresses() == []
    assert not [source for source in plan.sources if source.variant]


@pytest.mark.parametrize("words", [["merge=ties", "merge.space=delta"], ["merge=iso_c"], ["merge=robustmerge_eq5"]])
def test_another_setting_than_the_strength_leaves_it_to_be_chosen(tmp_path, words):
    plan = plan_with_val(tmp_path, *words)
    (method,) = plan.config.methods
    (by_factor,) = plan.candidates.values()
    assert by_factor[1.0].address == plan.merged(method)
    for factor, source in by_factor.items():
        assert source.method.strength == pytest.approx(factor * method.strength)  # on the update in all three


def test_missing_val_scores_are_told_with_the_way_to_make_them_and_the_way_without(tmp_path):
    plan = plan_with_val(tmp_path, "methods=[ties]")
    with pytest.raises(UserError, match=r"32 val scores are missing.*(?s:.)*merge_eval\.sh(?s:.)*strength_grid=null"):
        _ = plan.sources
    assert plan.find_source("merged/ties").variant == "", "the configured sources need none of them"
    with pytest.raises(UserError, match=r"merged/ties, merged/ties@chosen"):
        plan.find_source("merged/tais")


def test_before_the_data_is_there_a_chosen_strength_is_missed_not_unknown_and_no_row_is_left_out(tmp_path):
    words = ("profile=smoke", "methods=[ties]", "multi_task=false")
    plan = make_plan(tmp_path, *words)
    for ask in (lambda: plan.sources, lambda: plan.find_source("merged/ties@chosen")):
        with pytest.raises(UserError, match="16 val scores are missing"):
            ask()
    assert plan.find_source("zero_shot").kind == "zero_shot"
    assert not make_plan(tmp_path, *words, "benchmark.counts.val=0").candidates


@pytest.mark.parametrize(
    ("data", "planned"),
    [
        (TaskData("t", generator="g"), True),
        (TaskData("t", generator="g", counts=Counts(val=0)), False),
        (TaskData("t", train="a.json", test="b.json"), True),  # a tenth of train
        (TaskData("t", val="v.json", test="b.json", counts=Counts(val=0)), True),
        (TaskData("t", test="b.json"), False),
    ],
)
def test_a_task_has_val_questions_by_its_file_or_else_by_its_plan(tmp_path, data, planned):
    file = tmp_path / "val.jsonl"
    assert has_val(file, data) == planned
    for text in ("", "a question\n"):
        file.write_text(text)
        assert has_val(file, data) == bool(text)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("[0.5,0.5]", "0.5 is given more than once (strength_grid)"),
        ("[0]", "must be above 0 and finite, got 0 (strength_grid)"),
        ("[-1.0]", "must be above 0 and finite, got -1 (strength_grid)"),
        ("[inf]", "must be above 0 and finite, got inf (strength_grid)"),
        ("[a]", "expected a number, got 'a' (strength_grid[0])"),
        ("0.5", "expected a list, got 0.5 (strength_grid)"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(tmp_path, grid, message):
    with pytest.raises(UserError) as refused:
        plan_with_val(tmp_path, grid=grid)
    assert message in str(refused.value)


def test_the_multi_task_model_shares_its_first_a_with_nobody(tmp_path):
    independent, shared = (make_plan(tmp_path, f"peft.shared_a_init={word}") for word in ("false", "true"))
    assert independent.multi_task == shared.multi_task
    assert all(independent.experts[name] != shared.experts[name] for name in independent.experts)
