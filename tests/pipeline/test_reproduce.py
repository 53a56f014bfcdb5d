"""What a laptop makes of the paper: the list of its steps, and that scores alone make every report again."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.program import CONFIGS, compose
from pipeline.stages import report
from pipeline.sweep import make_plan_with
from pipeline.tools.reproduce import Reproduction, describe_progress, format_page, write_archive
from robustmerge.stage.settings import ConfigError
from tests.plans import make_plan, make_point
from tests.smoke_run import SmokeRun


def read_request(tmp_path: Path, *words: str) -> Reproduction:
    return make_plan_with(Reproduction, make_point(tmp_path, *words, program="reproduce"))[1]


def test_every_experiment_of_the_paper_is_a_step_and_every_step_an_experiment(tmp_path: Path) -> None:
    steps = read_request(tmp_path).chosen
    experiments = {file.stem for file in (CONFIGS / "experiment").glob("*.yaml")}
    assert set(steps) - {"main"} <= experiments
    of_the_paper = {name for name in experiments if name.startswith(("table", "figure"))}
    assert of_the_paper - set(steps) == {"table2", "figure1"}  # which are `main`
    for name, step in steps.items():
        assert name == "main" or f"experiment={name}" in step.words
        assert (CONFIGS / f"{step.programs[-1]}.yaml").exists()
    assert sum(step.minutes for step in steps.values()) <= 100


def test_a_step_that_is_not_there_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown step 'table8'; choose one of .*did you mean 'table9'"):
        read_request(tmp_path, "only=[table8]")


def test_the_time_left_follows_the_speed_so_far(tmp_path: Path) -> None:
    steps = list(read_request(tmp_path).chosen.values())
    known = sum(step.minutes for step in steps)
    assert f"step 1 of {len(steps)}" in describe_progress(steps, 0, 0)
    assert f"about {known:.0f} min left" in describe_progress(steps, 0, 0)
    twice_as_fast = describe_progress(steps, 1, 60 * steps[0].minutes / 2)
    assert f"about {-(-(known - steps[0].minutes) // 2):.0f} min left" in twice_as_fast


def test_the_page_says_of_each_step_how_it_was_made_and_what_was_not(tmp_path: Path) -> None:
    words = ["only=[table6,figure3]", "seed=3"]
    page = format_page(make_plan(tmp_path), read_request(tmp_path, *words), ["seed=3"])
    assert (
        "[made here, small model, drawn tasks](table6/report.md) | `bash scripts/train_all.sh experiment=table6 seed=3`"
        in page
    )
    assert "(figure3/figure3.svg) | `python scripts/inspect_adapters.py experiment=figure3 seed=3`" in page
    for missing in compose("reproduce", [])["missing"]:
        assert missing in page
    assert "table7" not in page


def test_scores_and_shown_answers_make_the_same_report_again_without_a_model(smoke: SmokeRun, tmp_path: Path) -> None:
    words = ["profile=smoke", "logger=none", "report=whole", "pdf=true", "bootstrap.draws=50"]
    (made, _) = report.report([make_plan(smoke.runs, *words)])[0]
    write_archive(smoke.root.parent, ["whole"], tmp_path / "scores.tar.xz")
    elsewhere = tmp_path / "runs"
    with tarfile.open(tmp_path / "scores.tar.xz") as archive:
        archive.extractall(elsewhere / "smoke", filter="data")
    shutil.copytree(smoke.root / "data", elsewhere / "smoke" / "mini-tiny" / "data")  # drawn again from its seed
    (again, _) = report.report([make_plan(elsewhere, *words)])[0]
    files = {file.relative_to(made) for file in made.rglob("*") if file.is_file() and file.name != "addresses.json"}
    assert {file.suffix for file in files} >= {".md", ".html", ".json", ".tex", ".csv", ".svg", ".png", ".pdf"}
    assert files == {
        file.relative_to(again) for file in again.rglob("*") if file.is_file() and file.name != "addresses.json"
    }
    for file in files:
        assert (made / file).read_bytes() == (again / file).read_bytes(), file
    assert "robust" in (again / "report.md").read_text().lower() and (again / "figures" / "examples").is_dir()
    write_archive(smoke.root.parent, ["whole"], tmp_path / "again.tar.xz")
    assert (tmp_path / "scores.tar.xz").read_bytes() == (tmp_path / "again.tar.xz").read_bytes()
