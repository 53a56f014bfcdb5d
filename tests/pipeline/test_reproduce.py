"""What a laptop makes of the paper: the list of its steps, and that scores alone make every report again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.program import CONFIGS, compose
from pipeline.stages import report
from pipeline.sweep import make_plan_with
from pipeline.tools.reproduce import (
    Reproduction,
    check_copy,
    describe_progress,
    format_page,
    reproduce,
    write_archive,
)
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import ConfigError, UserError
from tests.plans import make_plan, make_point
from tests.smoke_run import SmokeRun

REMADE = ("table6", "figure3")  # of the committed reports: a table, and one that is drawn of spectra
RENDERED = (".png", ".pdf")  # by libraries whose versions differ in them; the same pictures are compared as SVG


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
    request = read_request(tmp_path, *words)
    page = format_page(make_plan(tmp_path), request, list(request.chosen), ["seed=3"])
    assert "[made here, tiny](table6/report.md) | `bash scripts/train_all.sh experiment=table6 seed=3`" in page
    assert "(figure3/figure3.svg) | `python scripts/inspect_adapters.py experiment=figure3 seed=3`" in page
    for missing in compose("reproduce", [])["missing"]:
        assert missing in page
    assert "(table7/" not in page and "Table 7, what is scaled by what | not run | `bash scripts/train_all.sh" in page


def test_nothing_is_made_again_where_nothing_was_made(tmp_path: Path) -> None:
    point = make_point(tmp_path, "from_scores=true", f"to={tmp_path / 'empty'}", program="reproduce")
    with pytest.raises(UserError, match=r"no report of a step is in .*/empty: name those .* \(only\)"):
        reproduce([point])
    with pytest.raises(UserError, match="scores.tar.xz does not exist"):
        reproduce([make_point(tmp_path, *point["overrides"], "only=[main]", program="reproduce")])


def test_a_later_step_adds_to_the_archive_and_other_benchmarks_stay_out_of_it(tmp_path: Path) -> None:
    def make_report(root: str, step: str, score: str) -> None:
        path = tmp_path / root / "scores" / score
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(score)
        path.with_suffix(".manifest.json").write_text("{}")
        folder = tmp_path / root / "reports" / step
        folder.mkdir(parents=True)
        (folder / "addresses.json").write_text(json.dumps([f"scores/{score}"]))

    reports, file = tmp_path / "mini-tiny" / "reports", tmp_path / "scores.tar.xz"
    make_report("mini-tiny", "main", "a.json")
    make_report("mini-small", "main", "b.json")
    make_report("mini-tiny", "model_size", "c.json")
    make_report("mini-small", "model_size", "d.json")
    make_report("mm_mergebench-llava15_7b", "model_size", "e.json")
    (reports / "model_size-models").mkdir()
    write_archive([reports / "main"], file)
    write_archive([reports / "model_size-models"], file)
    with tarfile.open(file) as archive:
        scores = [name for name in archive.getnames() if "manifest" not in name]
    assert scores == ["mini-small/scores/d.json", "mini-tiny/scores/a.json", "mini-tiny/scores/c.json"]


def test_a_folder_that_holds_no_report_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no report: nothing is removed"):
        check_copy(tmp_path / "main")
    (tmp_path / "main" / "report.json").touch()
    check_copy(tmp_path / "main")
    check_copy(tmp_path / "absent")


def test_scores_and_shown_answers_make_the_same_report_again_without_a_model(smoke: SmokeRun, tmp_path: Path) -> None:
    words = ["profile=smoke", "logger=none", "report=whole", "pdf=true", "bootstrap.draws=50"]
    (made, _) = report.report([make_plan(smoke.runs, *words)])[0]
    write_archive([made], tmp_path / "scores.tar.xz")
    elsewhere = tmp_path / "runs"
    with tarfile.open(tmp_path / "scores.tar.xz") as archive:
        archive.extractall(elsewhere / "smoke", filter="data")
    shutil.copytree(smoke.root / "data", elsewhere / "smoke" / "mini-tiny" / "data")  # drawn again from its seed
    (again, _) = report.report([make_plan(elsewhere, *words)])[0]
    files = list_names(made) - {Path("addresses.json")}
    assert {file.suffix for file in files} >= {".md", ".html", ".json", ".tex", ".csv", ".svg", ".png", ".pdf"}
    assert files == list_names(again) - {Path("addresses.json")}
    for file in files:
        assert (made / file).read_bytes() == (again / file).read_bytes(), file
    assert "robust" in (again / "report.md").read_text().lower() and (again / "figures" / "examples").is_dir()
    write_archive([made], tmp_path / "again.tar.xz")
    assert (tmp_path / "scores.tar.xz").read_bytes() == (tmp_path / "again.tar.xz").read_bytes()


def test_the_committed_reports_are_made_again_byte_for_byte_from_the_committed_scores(tmp_path: Path) -> None:
    committed, again = REPOSITORY / "results" / "mini-tiny" / "reproduced", tmp_path / "again"
    again.mkdir()
    shutil.copy(committed / "scores.tar.xz", again)
    subprocess.run(
        [sys.executable, "scripts/reproduce.py", "from_scores=true", f"only=[{','.join(REMADE)}]", f"to={again}"],
        cwd=REPOSITORY,
        env={**os.environ, "ROBUSTMERGE_RUNS": str(tmp_path / "runs"), "WANDB_MODE": "disabled"},
        check=True,
    )
    assert (again / "scores.tar.xz").read_bytes() == (committed / "scores.tar.xz").read_bytes()
    for step in REMADE:
        names = list_names(committed / step)
        assert names == list_names(again / step)
        for name in (name for name in names if name.suffix not in RENDERED):
            assert read_comparable(again / step / name) == read_comparable(committed / step / name), name


def list_names(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}


def read_comparable(file: Path) -> str:
    """What a report says but for the commit of the code that wrote it, and the last digits of its drawings."""
    text = re.sub(r"\b[0-9a-f]{40}\b(`|</code>)?( \(with uncommitted changes\))?", "COMMIT", file.read_text())
    text = re.sub(r"data:image/svg\+xml;base64,[^\"]+", "a figure that has a file of its own", text)
    if file.suffix == ".svg":  # another processor places a line a millionth of a point further
        text = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.2f}", text)
        text = re.sub(r"\bp[0-9a-f]{10}\b", "a path that is named by where it lies", text)
    return re.sub(r'("with_uncommitted_changes": )\w+', r"\1?", text)
