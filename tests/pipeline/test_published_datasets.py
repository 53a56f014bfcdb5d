"""Twelve published datasets from the owners' files to a table: small raw folders, the small base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.origin import Download, Origin
from data_prep.settings import load_release
from pipeline.plan import Plan
from pipeline.program import CONFIGS, compose
from pipeline.stages.train import check_training
from pipeline.sweep import make_plans
from pipeline.tools import fetch
from pipeline.tools.verify import EXPECTED
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import UserError
from robustmerge.stage.yaml_files import read_yaml
from tests.data_prep.release_folder import raw_of
from tests.data_prep.test_published_data import plan_of
from tests.published_folder import write_published
from tests.tiny_hub import TinyHub, serve, use

TASKS = tuple(sorted(path.stem for path in (CONFIGS / "task" / "mm_mergebench").glob("*.yaml")))
WITHOUT_TRAIN = ("imagenet", "rec")  # whose published training rows no release gives: these come from question files
SHORT = ("model.recipe.max_steps=2", "model.recipe.global_batch=2", "model.recipe.save_steps=2")


@dataclass(frozen=True)
class Run:
    root: Path
    words: tuple[str, ...]

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def results(self) -> Path:
        return self.runs / "smoke/mm_mergebench-tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    """The owners' files of every task in a raw folder of its own, with odd rows and broken pictures among them."""
    root = tmp_path_factory.mktemp("owners")
    collection, images = write_published(root / "published")
    words = ["benchmark=mm_mergebench", "benchmark.source=release", f"raw={collection}", *SHORT, "multi_task=false"]
    words += [
        f"paths.mm_mergebench_images={images}",
        "methods=[task_arithmetic]",
        "strength_grid=null",
        "jobs=1",
    ]
    for name in TASKS:
        if name in WITHOUT_TRAIN:
            words.append(f"task.{name}.data.source=questions")
            continue
        raw_of(name).write(root / name)
        words += [f"task.{name}.data.{key}={root / name}" for key in ("collection", "images")]
        words.append(f"task.{name}.data.most_rejected=0.9")
    yield Run(root, tuple(words))


@pytest.mark.usefixtures("undrawn")
def test_all_twelve_are_prepared_trained_on_and_evaluated(run, type_here):
    said = type_here("train_all", *run.words, runs=run.runs)
    assert "rows of test are left out" in said and "8 trained models" in said
    printed = type_here("merge_eval", *run.words, runs=run.runs)
    (report,) = (run.results / "reports").glob("*/report.md")
    (task_arithmetic,) = (run.results / "scores/merged").glob("task_arithmetic-*")
    scores = {path.name.rpartition("-")[0]: read_score(path) for path in task_arithmetic.glob("*-????????.json")}
    assert tuple(sorted(scores)) == TASKS and "Task Arithmetic" in printed
    ocrvqa = scores["ocrvqa"]
    assert ocrvqa.n_left_out and ocrvqa.coverage == ocrvqa.n_expected / (ocrvqa.n_expected + ocrvqa.n_left_out)
    assert (
        f"OCR-VQA: scored on {ocrvqa.coverage:.1%} of the questions ({ocrvqa.n_left_out} left out)"
        in report.read_text()
    )


def test_verify_shows_what_a_person_would_look_for(run, type_here):
    type_here("prepare", *run.words, runs=run.runs)
    printed = type_here("verify", *run.words, runs=run.runs)
    parts = dict(part.split("\n", 1) for part in printed.split("\n\n") if "data/" in part)
    assert len(parts) == len(TASKS)
    (vizwiz,) = (part for title, part in parts.items() if title.startswith("VizWiz"))
    assert "7,750" in vizwiz and "(not verified)" in vizwiz and "missing picture" in vizwiz
    assert "Generate a brief caption for the image. 100%" in vizwiz and ".jpg" in vizwiz
    assert (run.results / "verify/pictures.png").stat().st_size > 10_000
    assert (run.results / "verify/verify.txt").read_text().strip() in printed


def test_verify_asks_for_data_that_is_not_prepared(run, tmp_path):
    (plan,) = make_plans([compose("verify", [*run.words, "profile=smoke", f"paths.runs={tmp_path}"])])
    from pipeline.tools.verify import verify

    with pytest.raises(UserError, match="not prepared yet: ScienceQA, .*; run .*scripts/prepare.sh"):
        verify(plan)


def test_expected_numbers_are_of_known_tasks_and_splits_and_say_where_they_are_from():
    for source, tasks in read_yaml(EXPECTED, "the expected numbers").items():
        assert source in ("questions", "release") and tasks.keys() <= set(TASKS)
        for splits in tasks.values():
            assert splits.keys() <= {"train", "val", "test"}
            assert all(set(one) == {"rows", "from", "verified"} and one["verified"] is False for one in splits.values())


def test_both_ways_name_the_same_splits_but_where_training_rows_cannot_be_derived():
    for name in TASKS:
        task = read_yaml(CONFIGS / "task/mm_mergebench" / f"{name}.yaml", "a task")
        release = task["data"]["release"]
        wanted = {"train", "test"} & task["data"].keys() - ({"train"} if name in WITHOUT_TRAIN else set())
        assert release["name"] == name and release.keys() - {"name"} == wanted
        assert all(release[split] in load_release(release["name"]).FILES for split in wanted)


def test_a_missing_file_of_a_release_is_said_with_where_to_get_it(tmp_path):
    (tmp_path / "raw").mkdir()
    raw = tmp_path / "raw"
    plan = plan_of(raw, raw, tmp_path / "runs", "vizwiz", overrides=("benchmark.source=release",))
    with pytest.raises(UserError) as error:
        plan.data(plan.config.tasks[0])
    for part in ("no VizWiz/annotations/val.json", "VizWiz-Captions (CC BY 4.0)", "https://vizwiz", "docs/data.md"):
        assert part in str(error.value)


def test_a_release_without_training_rows_is_refused_before_anything_is_prepared(tmp_path):
    raw_of("rec").write(tmp_path)
    plan = plan_of(tmp_path, tmp_path, tmp_path / "runs", "rec", overrides=("benchmark.source=release",))
    with pytest.raises(UserError, match=r"no rows to train on: rec .*task\.rec\.data\.source=questions"):
        check_training([plan])


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[TinyHub]:
    files = {"ann/questions": {"instructions/Unseen_data/AOKVQA/val.json": b"[]", "README.md": b"card"}}
    with serve(files) as served:
        use(monkeypatch, served.address, tmp_path / "cache")
        yield served


def fetch_from(one: Download, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Fetch for A-OKVQA, with this download in place of the question files'."""
    monkeypatch.setattr(fetch, "QUESTION_FILES", Origin("Questions", "a licence", (one,), ""))
    words = ["benchmark=mm_mergebench", "tasks=[aokvqa]", f"raw={folder}"]
    (plan,) = make_plans([compose("train_all", words)])
    fetch.fetch(plan)
    return plan


def test_what_the_hub_has_is_fetched_into_the_raw_folder_after_its_licence_is_said(hub, tmp_path, monkeypatch, capsys):
    one = Download("instructions/", hub.address, "1 kB", "ann/questions", ("instructions/*",), "below")
    fetch_from(one, tmp_path / "raw", monkeypatch)
    said = capsys.readouterr().out
    assert said.index("Questions: a licence") < said.index("A-OKVQA: Apache-2.0") < said.index("fetching ann/questions")
    fetched = {path.relative_to(tmp_path / "raw/below").as_posix() for path in (tmp_path / "raw/below").rglob("*.*")}
    assert {name for name in fetched if ".cache" not in name} == {"instructions/Unseen_data/AOKVQA/val.json"}


def test_a_relative_raw_folder_starts_where_the_tasks_look_for_it(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "REPOSITORY", tmp_path)
    plan = fetch_from(Download("x", hub.address, "1 kB", "ann/questions"), Path("raw"), monkeypatch)
    assert (tmp_path / "raw/README.md").read_bytes() == b"card"
    assert plan.config.data(plan.config.tasks[0]).collection == str(REPOSITORY / "raw")


def test_a_repository_that_is_not_there_is_named(hub, tmp_path, monkeypatch):
    one = Download("x", hub.address, "1 kB", "ann/nothing")
    with pytest.raises(UserError, match="ann/nothing"):
        fetch_from(one, tmp_path / "raw", monkeypatch)


def test_fetch_is_true_or_false():
    assert fetch.wants_fetch({"fetch": True}) and not fetch.wants_fetch({"fetch": False})
    with pytest.raises(UserError, match="expected true or false, got 'flase'"):
        fetch.wants_fetch({"fetch": "flase"})


def test_drawn_tasks_have_nothing_to_fetch():
    (plan,) = make_plans([compose("train_all", ["tasks=[vqav2]"])])
    with pytest.raises(UserError, match="fetch=true is for tasks of published datasets"):
        fetch.fetch(plan)
