"""Results of a sweep on disk as the rows of a report: seeds joined, settings named, both protocols. Needs nothing."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from eval.report.results import CHOSEN, group_results
from pipeline.plan import Plan
from pipeline.program import parse_overrides
from pipeline.stages import predict, report
from pipeline.stages.report_context import make_context
from pipeline.sweep import find_ordered_key, make_plans
from tests.merge_cases import random_experts, write_expert
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
            one.predictions.manifest.unlink()  # the answers are not needed once there is a score
    others = {(result.title, result.variant): dict(result.other_scores) for result in report.collect_results(plans[:1])}
    assert others.pop(("Zero-shot", "")) == {task: make_score(task, 7) for task in ("vqav2", "rec")}
    assert others == dict.fromkeys([("Individual", ""), ("Multi-task", ""), ("TIES", ""), ("TIES", CHOSEN)], {})


# A sweep over one key whose values have an order


@pytest.fixture(scope="module")
def dial(tmp_path_factory) -> list[Plan]:
    """A sweep over three bases and two seeds, every source with a score that grows with what the base knows."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["model.base.train=true", "tasks=[vqav2,rec]", "methods=[ties,robustmerge]", "strength_grid=null"]
    points = [
        make_point(runs, f"seed={seed}", f"model.base.knows={knows}", *words)
        for seed in (1, 2)
        for knows in ("nothing", "half", "paper")
    ]
    plans = make_plans(points)
    for plan in plans:
        for one in plan.evaluations:
            right = 10 * ["nothing", "half", "paper"].index(plan.overrides["model.base.knows"])
            finish_score(one, make_score(one.task.name, right + 40 * (one.source.kind != "zero_shot")))
    return plans


def test_a_sweep_over_bases_has_a_row_for_each_of_them_and_compares_methods_on_each(dial):
    assert len({plan.base.path for plan in dial}) == 3
    groups = group_results(report.collect_results(dial))
    values = [f"base knows = {value}" for value in ("nothing", "half", "paper")]
    rows = {group.title: [one.seed for one in group.results] for group in groups}
    titles = ["Individual", "Multi-task", "TIES", "RobustMerge"]
    assert rows == {
        **{f"Zero-shot ({value})": [None] for value in values},
        **{f"{title} ({value})": [1, 2] for title in titles for value in values},
    }
    assert [group.block for group in groups if group.kind == "merged"] == [
        heading for value in values for heading in [value[:1].upper() + value[1:]] * 2
    ]


def test_the_report_of_a_sweep_over_bases_shows_every_source_against_what_they_know(dial):
    ((folder, _),) = report.report(dial)
    text = (folder / "report.md").read_text()
    assert "## Against `model.base.knows`" in text
    assert "zero-shot over individual: nothing 0.00, half 0.20, paper 0.33." in text
    assert (folder / "figures" / "swept.svg").exists()
    table = (folder / "tables" / "swept.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table[1:]] == [
        "Zero-shot",
        "Individual",
        "Multi-task",
        "TIES",
        "RobustMerge",
    ]
    assert set((folder / "addresses.json").read_text().split()) >= {f'"{plan.base.short}",' for plan in dial}


def test_what_no_point_changes_is_one_row_that_belongs_to_all(tmp_path):
    words = ["tasks=[vqav2,rec]", "methods=[ties]", "strength_grid=null", "model.base.train=true"]
    plans = make_plans([make_point(tmp_path, f"model.recipe.epochs={epochs}", *words) for epochs in ("4", "0.25", "1")])
    for one in (one for plan in plans for one in plan.evaluations):
        finish_score(one, make_score(one.task.name, 9))
    facets = [(result.source, result.facet) for result in report.collect_results(plans)]
    lengths = [f"recipe epochs = {epochs}" for epochs in ("4", "0.25", "1")]
    assert sorted(facets) == sorted(
        [
            ("zero_shot", ""),
            *((source, one) for source in ("individual", "multi_task", "merged/ties") for one in lengths),
        ]
    )


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (["model.recipe.epochs=4", "model.recipe.epochs=0.25"], ["0.25", "4"]),
        (["model.base.knows=paper", "model.base.knows=nothing"], ["paper", "nothing"]),
        (["peft.shared_a_init=false", "peft.shared_a_init=true"], None),
        (["tasks=[vqav2]", "tasks=[rec]"], None),
        (["merge.prune.density=0.5", "merge.prune.density=0.05"], ["0.05", "0.5"]),
        (["model=tiny", "model=small"], ["tiny", "small"]),
        (["expert_set=trained", "expert_set=released"], None),
        (["merge=ties", "merge=dare"], None),
        (["seed=1", "seed=2"], None),
    ],
)
def test_numbers_are_ordered_words_stand_as_typed_and_switches_lists_and_files_have_no_order(points, expected):
    plans = [
        SimpleNamespace(overrides={"seed": str(i), **parse_overrides([word])}, config=SimpleNamespace(methods=()))
        for i, word in enumerate(points)
    ]
    swept = find_ordered_key(plans)
    assert (swept and list(swept.titles)) == expected


@pytest.fixture(scope="module")
def densities(tmp_path_factory) -> list[Plan]:
    """A sweep over a setting of one method, which is better the more it keeps."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["merge=robustmerge", "merge.scale.A=null", "merge.scale.B=A", "tasks=[vqav2,rec]", "multi_task=false"]
    plans = make_plans(
        [make_point(runs, f"merge.prune.density={d}", "strength_grid=null", *words) for d in ("0.5", "0.2", "0.05")]
    )
    for plan in plans:
        for one in plan.evaluations:
            right = 10 + 100 * float(plan.overrides["merge.prune.density"]) * (one.source.kind == "merged")
            finish_score(one, make_score(one.task.name, int(right)))
    return plans


def test_a_point_is_labelled_by_what_was_typed_for_it_whatever_the_methods_file_says(densities):
    results = {one.title: [] for one in report.collect_results(densities)}
    for one in report.collect_results(densities):
        results[one.title].append(dict(one.overrides))
    typed = {"scale.A": "null", "scale.B": "A"}  # which the file says, too
    assert results == {
        "Zero-shot": [{}],
        "Individual": [{}],
        "RobustMerge": [{**typed, "prune.density": density} for density in ("0.5", "0.2", "0.05")],
    }
    titles = [group.title for group in group_results(report.collect_results(densities)) if group.kind == "merged"]
    assert titles == [f"RobustMerge (prune.density={density})" for density in ("0.5", "0.2", "0.05")]


def test_a_sweep_over_a_setting_of_one_method_is_a_curve_whose_points_are_compared_with_each_other(densities):
    ((folder, _),) = report.report(densities)
    assert "## Against `merge.prune.density`" in (folder / "report.md").read_text()
    assert (folder / "figures" / "swept.svg").exists()
    _, *rows = (folder / "tables" / "swept.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["Zero-shot", "Individual", "RobustMerge"]
    assert not any(group.block for group in group_results(report.collect_results(densities)))
    assert len((folder / "tables" / "pairs.csv").read_text().splitlines()) == 1 + 3


def test_draws_of_given_experts_are_joined_like_seeds_and_none_hides_another(tmp_path):
    for name, pairs in random_experts("abc").items():
        write_expert(tmp_path / name, pairs)
    experts = ",".join(str(tmp_path / name) for name in "abc")
    words = [f"experts=[{experts}]", "tasks=[vqav2,rec]", "methods=[ties,dare]", "strength_grid=null"]
    points = [(seed, count) for seed in (1, 2, 3) for count in (1, 2)]
    plans = make_plans([make_point(tmp_path, *words, f"seed={s}", f"merge_count={n}") for s, n in points])
    for plan in plans:
        for one in plan.evaluations:
            finish_score(one, make_score(one.task.name, 10 * plan.config.merge_count + plan.config.seed))
    groups = [group for group in group_results(report.collect_results(plans)) if group.kind == "merged"]
    assert [(group.title, len(group.results)) for group in groups] == [
        (f"{title} (merge count = {count})", 3) for count in (1, 2) for title in ("DARE", "TIES")
    ]


def test_a_sweep_over_models_ends_in_a_report_of_each_and_one_of_all(tmp_path):
    words = ["tasks=[vqav2,rec]", "methods=[ties,dare]", "strength_grid=null", "multi_task=false"]
    plans = make_plans([make_point(tmp_path, f"model={model}", *words) for model in ("tiny", "small")])
    for place, plan in enumerate(plans):
        for one in plan.evaluations:
            finish_score(one, make_score(one.task.name, 50 + 10 * place))
    folders = [folder for folder, _ in report.report(plans)]
    assert [folder.parent.parent.name for folder in folders] == ["mini-tiny", "mini-small", "mini-tiny"]
    assert len(set(folders)) == 3
    text = (folders[-1] / "report.md").read_text()
    assert text.startswith("# mini on tiny and small\n") and "## Against `model`" in text
    _, *rows = (folders[-1] / "tables" / "main.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows if "DARE" in row] == [
        f"DARE (model = {m})" for m in ("tiny", "small")
    ]


def test_two_keys_have_no_order_together():
    plans = [SimpleNamespace(overrides={"peft.r": str(r), "peft.alpha": str(2 * r)}) for r in (2, 4)]
    assert find_ordered_key(plans) is None


def test_every_base_is_loaded_once_whatever_is_swept_first(dial, monkeypatch):
    answered = []
    monkeypatch.setattr(predict, "run_side_by_side", lambda plan, title, items, *_: answered.extend(items))
    predict.predict([one for plan in dial for one in plan.evaluations])
    bases = [item["base"] for item in answered]
    assert len(list(itertools.groupby(bases))) == len(set(bases)) == 3


def test_the_context_of_a_sweep_names_every_base_that_was_measured(dial):
    for plan in dial[:2]:
        plan.base.path.mkdir(parents=True, exist_ok=True)
        (plan.base.path / "training.json").write_text('{"skills": {"all": 0.9}}')
    context = make_context("main", dial)
    assert [base["name"] for base in context.bases] == [plan.base_name for plan in dial[:2]]
    assert context.seeds["base"] == 0 and context.swept is not None and context.swept.key == "model.base.knows"
