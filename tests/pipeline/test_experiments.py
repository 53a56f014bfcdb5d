"""Every experiment of configs/experiment runs in its smallest form: two tasks, and two points where it holds a sweep.

They share a base, data and experts, and run in this process.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from pipeline.plan import Plan
from pipeline.program import CONFIGS
from pipeline.stages import base, choose, predict, prepare, report, score, train
from pipeline.sweep import make_plans
from tests.plans import make_point
from tests.smollm2_layout import write_language
from tests.tiny_clip import write_clip

ELSEWHERE = {  # which tests run them
    "figure3": "test_inspection",
    "figure7": "test_inspection",
    "figure8": "test_inspection",
    "expert_only": "test_readme, by scripts/example_task.sh",
    "only_evaluate": "test_released",
}
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml") if file.stem not in ELSEWHERE)
OF_CLIP = ("table4", "table5")
TASKS = {"table3": "vqav2,iconqa,pope_like,mme_like,mmbench_like", **dict.fromkeys(OF_CLIP, "eurosat,dtd")}
DRAWN = ("strength", "table3", "base_knows")  # what draws is the same of all; it takes as long as the rest of a report
SMALLEST = (
    "profile=smoke",
    "multi_task=false",
    "weight_search=[]",
    "benchmark.counts={train: 8, val: 2, test: 4}",
    "model.recipe.max_steps=1",
    "bootstrap.draws=20",
    "jobs=1",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def list_points(experiment: str) -> list[list[str]]:
    """The words of the first two values of what the experiment sweeps over; of one point without a sweep."""
    settings = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
    swept = settings.get("hydra", {}).get("sweeper", {}).get("params", {})
    values = [[f"{key}={value}" for value in str(values).split(",")[:2]] for key, values in swept.items()]
    return [list(point) for point in zip(*values, strict=True)] or [[]]


def run_experiment(experiment: str, runs: Path) -> Sequence[Plan]:
    grid = "[0.5,1.0]" if experiment == "strength" else "null"
    small_clip = ["benchmark=clip8_mini", "model=clip_tiny", f"model.checkpoint={runs / 'clip'}"]
    if experiment in OF_CLIP and not (runs / "clip").exists():
        write_clip(runs / "clip")
    words = [
        f"experiment={experiment}",
        *(small_clip if experiment in OF_CLIP else ()),
        *SMALLEST,
        f"strength_grid={grid}",
        f"tasks=[{TASKS.get(experiment, 'vqav2,iconqa')}]",
    ]
    points = list_points(experiment)
    if experiment == "pretrained":  # two layers in place of a package that may not be installed
        language = write_language(runs / "language")
        points[1] = ["model=smollm2", "model.base.train=true", f"model.base.language={language}"]
    plans = make_plans([make_point(runs, *words, *point) for point in points])
    base.make_bases(plans)
    prepare.prepare(plans)
    train.train(plans)
    choose.choose(plans)
    evaluations = [one for plan in plans for one in plan.evaluations]
    predict.predict(score.find_unscored(evaluations))
    score.score(evaluations)
    return plans


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_ends_in_a_report_of_all_its_rows(
    experiment: str, runs: Path, request: pytest.FixtureRequest
) -> None:
    plans = run_experiment(experiment, runs)
    if experiment not in DRAWN:
        request.getfixturevalue("undrawn")
    *_, (folder, _) = report.report(plans)
    text = (folder / "report.md").read_text()
    assert "first of the merged models" not in text  # whose numbers mean nothing
    with open(folder / "tables" / "main.csv") as file:
        rows = [row["source"] for row in csv.DictReader(file)]
    for title in (method.title for plan in plans for method in plan.config.methods):
        assert any(row.startswith(title) for row in rows), title
    without = ("seeds", "shared_a_init", "pretrained")  # the points differ in no key to show, or here in several
    has_sweep = len(plans) > 1 and experiment not in without
    assert ("## Against `" in text) == has_sweep
    assert ("figures/strengths.svg" in text) == (experiment == "strength")
    if experiment in OF_CLIP:
        assert f"table {experiment[-1]} of [the paper]" in text and "Column heads corrected" in text
    if experiment == "table3":
        assert "MMBench-like" in text and "table 3 of the paper" in text
