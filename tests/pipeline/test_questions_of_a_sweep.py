"""Which questions the points of a sweep ask, and which rows of a task are kept for them. Needs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stages import prepare
from pipeline.stages.report_context import make_context
from pipeline.sweep import make_plans
from pipeline.tools.runs import Result, format_score
from robustmerge.stage.address import Address
from robustmerge.stage.records import Example, write_examples, write_score
from robustmerge.stage.settings import UserError
from tests.plans import finish, make_plan, make_point
from tests.report_cases import make_score

WORDS = ("tasks=[vqav2,rec]", "multi_task=false", "strength_grid=null", "methods=[ties]")


def make_sweep(runs: Path, *points: str) -> list:
    return make_plans([make_point(runs, *WORDS, *point.split()) for point in points])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["benchmark.counts.test=20", "benchmark.counts.test=30"], "cannot run over benchmark.counts.test"),
        (["benchmark.seed=1 peft.r=1", "benchmark.seed=2 peft.r=2"], "benchmark.seed, .* cannot run over another key"),
    ],
)
def test_points_that_would_be_compared_on_different_questions_are_refused(tmp_path, points, message):
    with pytest.raises(UserError, match=message):
        make_sweep(tmp_path, *points)


def test_a_sweep_over_drawings_names_no_single_one_and_shows_the_questions_of_its_first(tmp_path):
    plans = make_sweep(tmp_path, "benchmark.seed=1 seed=1", "benchmark.seed=2 seed=1", "benchmark.seed=2 seed=2")
    context = make_context("main", plans)
    assert "benchmark" not in context.seeds
    assert context.questions == {
        task.name: plans[0].questions(plans[0].test_set(task)) for task in plans[0].config.tasks
    }
    assert make_context("main", plans[1:]).seeds["benchmark"] == 2


def test_every_source_of_a_table_answers_the_ids_on_the_tasks_that_have_them(tmp_path):
    plan = make_plan(tmp_path, *WORDS, "ids=[rec-1]")
    for task in plan.config.tasks:
        file = plan.questions(plan.test_set(task))
        file.parent.mkdir(parents=True)
        write_examples(file, [Example(f"{task.name}-{number}", "What?", "red") for number in range(2)])
    assert {one.task.name for one in plan.evaluations} == {"rec"}
    assert {one.source.name for one in plan.evaluations} == {"zero_shot", "expert/rec", "merged/ties"}


def test_what_is_kept_of_a_task_does_not_depend_on_what_is_scored_first(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(prepare, "run_in_turn", lambda plan, title, job, items: made.append(items))
    for words in ([], ["protocol=official", "other_protocol=false"], ["strength_grid=[1.0]"]):
        prepare.prepare([make_plan(tmp_path, *WORDS, *words)])
    assert made[0] and all(items == made[0] for items in made)


def test_the_list_of_results_averages_one_score_a_task_and_none_of_the_joint_protocol(tmp_path):
    folder = tmp_path / "merged" / "ties-1a2b3c4d"

    def add(task: str, right: int, name: str, **settings: object) -> None:
        kind = f"merged/ties-1a2b3c4d/{task}-{name}"
        answers = Address(tmp_path, tmp_path / "predictions" / f"{kind}.jsonl", {"settings": settings, "of": kind})
        place = tmp_path / "scores" / f"{kind}.json"
        finish(answers)
        finish(Address(tmp_path, place, {"inputs": {"predictions": answers.fingerprint}}))
        write_score(place, make_score(task, right))

    def shown() -> str:
        return format_score(Result(tmp_path, folder, {}, {}))

    add("cars", 12, "a"), add("dtd", 24, "a")
    alone = shown()
    assert alone.endswith("(2)")
    add("cars", 2, "joint", pooled={"cars": "a photo", "dtd": "a texture"})
    assert shown() == alone
    add("cars", 3, "b")
    assert shown() == "several"
