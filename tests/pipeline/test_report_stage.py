"""Results of a sweep on disk as the rows of a report: seeds joined, settings named, both protocols. Needs nothing."""

from __future__ import annotations

import pytest

from eval.report.results import CHOSEN, group_results
from pipeline.plan import Plan
from pipeline.stages import report
from pipeline.sweep import make_plans
from tests.plans import finish, finish_score, make_point
from tests.report_cases import make_score


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> list[Plan]:
    """A sweep over two seeds and both starts, every source with a score: TIES does best at its default strength."""
    words = ["profile=smoke", "other_protocol=true", "tasks=[vqav2,rec]", "methods=[ties]", "strength_grid=[0.5,1.0]"]
    runs = tmp_path_factory.mktemp("runs")
    points = [
        make_point(runs, f"seed={seed}", f"peft.shared_a_init={start}", *words)
        for seed in (1, 2)
        for start in ("false", "true")
    ]
    plans = make_plans(points)
    for plan in plans:
        for method, by_factor in plan.candidates.items():
            for one in plan.val_evaluations:
                is_default = one.source.address == by_factor[1.0].address
                finish_score(one, make_score(one.task.name, 90 if is_default else 10))
            assert plan.choices[method].factor == 1.0
        for one in plan.evaluations:
            finish_score(one, make_score(one.task.name, 9))
    return plans


def test_a_sweep_over_seeds_and_starts_is_collected_into_rows_that_name_what_differs(plans):
    rows = {row.title: [point.seed for point in row.results] for row in group_results(report.collect_results(plans))}
    both_starts = ("independent A", "shared A")
    assert rows == {
        "Zero-shot": [None],
        **{f"Individual ({start})": [1, 2] for start in both_starts},
        "Multi-task": [1, 2],
        **{f"TIES{words} ({start})": [1, 2] for start in both_starts for words in ("", ", strength chosen")},
    }
    assert report.name_report(plans).startswith("methods=_ties_-other_protocol=true-peft.shared_a_init=false_")


def test_scores_under_the_other_protocol_are_collected_where_they_are_finished(plans):
    for one in plans[0].evaluations:
        if one.source.kind in ("zero_shot", "multi_task"):
            finish(one.predictions)
        if one.source.kind == "zero_shot":
            other = one.with_other_protocol()
            assert other is not None and other.score != one.score
            finish_score(other, make_score(one.task.name, 7))
    others = {(result.title, result.variant): dict(result.other_scores) for result in report.collect_results(plans[:1])}
    assert others.pop(("Zero-shot", "")) == {task: make_score(task, 7) for task in ("vqav2", "rec")}
    assert others == dict.fromkeys([("Individual", ""), ("Multi-task", ""), ("TIES", ""), ("TIES", CHOSEN)], {})
