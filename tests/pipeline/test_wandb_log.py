"""What goes to Weights & Biases, read back from an offline run; a failure there costs nothing. Needs nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from matplotlib import image

from eval.report.assemble import Report
from eval.settings import LOGGER_NAMES, Logger
from llava_ext.settings import LOSSES
from pipeline.plan import Plan
from pipeline.stages import report
from pipeline.wandb_live import show_losses
from pipeline.wandb_log import log_results
from robustmerge.stage.address import REPOSITORY, UNFINISHED
from robustmerge.stage.records import Example, Prediction, write_examples, write_predictions
from robustmerge.stage.settings import build
from tests.plans import finish, finish_score, make_plan
from tests.report_cases import make_score

TASKS = ("+task/mini_general=pope_like", "tasks=[vqav2,rec,pope_like]")  # the last is in no average
WORDS = (*TASKS, "methods=[ties]", "strength_grid=null", "multi_task=false", "report=main")
LEARNING_RATES = (0.2, 0.1)


@pytest.mark.parametrize("name", LOGGER_NAMES)
def test_every_logger_has_a_file_that_builds_it(name):
    values = yaml.safe_load((REPOSITORY / "configs" / "logger" / f"{name}.yaml").read_text())
    assert build(Logger, values, "logger").name == name


def make_finished_plan(runs: Path, *words: str) -> Plan:
    """Two experts with losses, their merge, all scores, and one question with a picture and its answers."""
    plan = make_plan(runs, *WORDS, *words)
    for expert in plan.trained_models:
        finish(expert)
        losses = [
            {"step": step, "loss": 1 / step, "learning_rate": rate} for step, rate in enumerate(LEARNING_RATES, start=1)
        ]
        (expert.path / LOSSES).write_text("".join(json.dumps(line) + "\n" for line in losses))
    for one in plan.evaluations:
        if one.source.kind == "merged":
            finish(one.source.address)
        finish_score(one, make_score(one.task.name, 9))
        if one.task.name == "vqav2":
            one.questions.parent.mkdir(parents=True, exist_ok=True)
            image.imsave(one.questions.parent / "owl.png", np.full((2, 3, 3), 0.5))
            write_examples(one.questions, [Example("vqav2-0", "What is it?", "an owl", image="owl.png")])
            finish(one.predictions)
            write_predictions(one.predictions.path, [Prediction("vqav2-0", "a hat")])
    return plan


def log(plan: Plan, reports: Sequence[tuple[Path, Report]]) -> str:
    """Log all; returns what is printed of W&B."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        log_results([plan], reports)
    return printed.getvalue()


def read_records(file: Path) -> list:
    """The records of an offline run: in blocks of 32 KiB, after a header of 7 bytes each, of a long record in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole, records = file.read_bytes(), 7, b"", []
    while place < len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(whole))
            whole = b""
    return records


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> SimpleNamespace:
    """A line that is logged in two tries, as the network fails in the first, and then once more; read back."""
    import wandb

    plan = make_finished_plan(tmp_path_factory.mktemp("runs"), "logger.mode=offline", "logger.artifacts=true")
    reports = report.report([plan])
    begin, begun = wandb.init, []

    def fail_in_the_end(**settings):
        begun.append(settings["id"])
        if len(begun) == 3:
            raise ConnectionError("no route\nto host")
        return begin(**settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", fail_in_the_end)
        printed = [log(plan, reports) for _ in range(3)]
    runs = {}
    for file in (plan.root / "wandb").glob("offline-run-*/*.wandb"):
        records = read_records(file)
        (started,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
        config = {one.key: json.loads(one.value_json) for one in started.config.update}
        steps = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
        items = [item for record in records if record.HasField("summary") for item in record.summary.update]
        summary = {"/".join(item.nested_key) or item.key for item in items}
        runs[started.run_id] = SimpleNamespace(
            run=started, config=config, steps=steps, artifacts=artifacts, summary=summary
        )
    return SimpleNamespace(plan=plan, printed=printed, begun=begun, runs=runs)


def test_what_fails_is_one_warning_and_the_next_command_logs_the_rest_and_nothing_twice(line):
    warning, rest, nothing = line.printed
    assert warning.startswith("warning: 5 of 7 results were not logged to W&B")
    assert warning.endswith("ConnectionError: no route to host\n") and warning.count("\n") == 1
    assert rest.startswith("W&B: 5 runs, offline") and rest.endswith(f"wandb sync {line.plan.root / 'wandb'}\n")
    assert nothing == ""
    assert len(line.begun) == 8 and set(line.begun) == set(line.runs), "one was begun twice"
    assert len(list((line.plan.root / "wandb").glob("offline-run-*"))) == 7


def test_a_result_is_a_run_named_by_its_hash_in_the_group_of_its_line(line):
    assert len({one.run.run_group for one in line.runs.values()}) == 1
    assert sorted(one.run.job_type for one in line.runs.values()) == [
        "merge", "report", "score", "score", "score", "train", "train",
    ]  # fmt: skip
    merged = line.plan.merged(line.plan.config.methods[0])
    for address in (*line.plan.trained_models, merged):
        logged = line.runs[address.fingerprint[:16]]
        assert logged.run.display_name == address.short and address.hash8 in logged.run.run_id
        assert logged.config[address.identity["stage"]] == address.identity["settings"]


def test_an_average_is_of_the_tasks_that_the_reports_average_over(line):
    scored = [one.summary for one in line.runs.values() if one.run.job_type == "score"]
    assert any({"vqav2", "rec", "pope_like", "seen_avg"} <= summary for summary in scored)
    assert not any("unseen_avg" in summary for summary in scored)


def test_an_expert_shows_its_training_a_source_its_scores_and_the_report_tables_and_pictures(line):
    by_name = {one.run.display_name: one for one in line.runs.values()}
    for expert in line.plan.trained_models:
        steps = [(step["_step"], step["learning_rate"]) for step in by_name[expert.short].steps]
        assert steps == list(enumerate(LEARNING_RATES, start=1))
        assert set(by_name[expert.short].artifacts) == {expert.path.name}
    (shown,) = by_name["reports/main"].steps
    assert shown["main/_type"] == "table-file" and shown["figures/tasks/_type"] == "image-file"
    (table,) = (line.plan.root / "wandb").glob("offline-run-*/files/media/table/examples_*.json")
    examples = json.loads(table.read_text())
    assert examples["columns"] == ["Task", "Picture", "Question", "Expected", "Zero-shot", "Individual", "TIES"]
    assert examples["data"] == [["vqav2", "Image", "What is it?", "an owl", "a hat", "a hat", "a hat"]]
    report_id = by_name["reports/main"].run.run_id
    parts = by_name["reports/main"].artifacts[f"run-{report_id}-examples"].manifest.contents
    (picture,) = [Path(part.local_path) for part in parts if part.path.endswith(".png")]
    assert image.imread(io.BytesIO(picture.read_bytes())).shape[:2] == (2, 3)
    assert picture.is_relative_to(line.plan.root / "wandb"), "what is not sent yet lies in one folder"


def with_logger(plan: Plan, logger: Logger, runs: Path) -> Plan:
    """The plan with another logger in another folder, where an expert is trained."""
    paths = dataclasses.replace(plan.config.paths, runs=str(runs))
    plan = Plan(dataclasses.replace(plan.config, logger=logger, paths=paths))
    finish(plan.trained_models[0])
    return plan


@pytest.mark.parametrize(
    ("mode", "key", "expected"), [("auto", False, "offline"), ("auto", True, "online"), ("offline", True, "offline")]
)
def test_wandb_is_offline_without_a_key(line, tmp_path, monkeypatch, mode, key, expected):
    modes: list[str] = []
    wandb = SimpleNamespace(login=lambda **_: key, init=lambda **values: modes.append(values["mode"]), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_results([with_logger(line.plan, Logger("wandb", mode=mode), tmp_path)])
    assert modes == [expected]


def test_without_a_logger_wandb_is_not_even_imported(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    plan = with_logger(line.plan, Logger("none"), tmp_path)
    log_results([plan])
    assert capsys.readouterr().out == "" and not (plan.root / "wandb").exists()


# While experts train


def start_training(plan: Plan) -> tuple[Path, subprocess.Popen]:
    """The folder in which an expert of the plan keeps its losses, and the process that holds its lock."""
    expert = plan.trained_models[0]
    work = expert.path / UNFINISHED
    work.mkdir(parents=True)
    holder = subprocess.Popen(["sleep", "60"])
    expert.lock.write_text(json.dumps({"pid": holder.pid}))
    return work, holder


def write_losses(work: Path, *steps: int) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step, "learning_rate": 0.1}) + "\n" for step in steps]
    (work / LOSSES).write_text("".join(lines) + '{"step": ')  # the next one is being written


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()


def test_losses_are_logged_as_they_come_and_in_the_end_it_is_one_run(tmp_path):
    plan = make_plan(tmp_path, *WORDS, "logger=wandb", "logger.mode=offline")
    (work, holder), expert = start_training(plan), plan.trained_models[0]
    write_losses(work, 1, 2, 3, 4)
    os.utime(work / LOSSES, (1, 1))  # left by a run that was killed
    with holder, show_losses([(expert, plan)], every=0.02):
        folder = plan.root / "wandb"
        time.sleep(0.1)
        assert not folder.exists()
        write_losses(work, 1, 2)
        wait_for(lambda: list(folder.glob(f"offline-run-*-{expert.fingerprint[:16]}/*.wandb")))
        write_losses(work, 1, 2, 3)
        (work / LOSSES).rename(expert.path / LOSSES)
        finish(expert)
        holder.kill()
    (expert.path / LOSSES).write_text((expert.path / LOSSES).read_text().removesuffix('{"step": '))
    runs = []
    for _ in range(2):
        (file,) = folder.glob("offline-run-*/*.wandb")
        records = read_records(file)
        shown = [
            json.loads(item.value_json)
            for record in records
            for item in record.history.item
            if "/".join(item.nested_key) == "_step"
        ]
        assert shown == [1, 2, 3]
        runs += [{(one.run.run_id, one.run.display_name) for one in records if one.HasField("run")}]
        log_results([plan])
    assert runs == [{(expert.fingerprint[:16], expert.short)}] * 2


def test_what_another_program_trains_is_left_to_it(tmp_path):
    plan = make_plan(tmp_path, *WORDS, "logger=wandb", "logger.mode=offline")
    work, holder = start_training(plan)
    plan.trained_models[0].lock.write_text(json.dumps({"pid": 1}))
    with holder, show_losses([(plan.trained_models[0], plan)], every=0.02):
        write_losses(work, 1, 2)
        time.sleep(0.1)
        holder.kill()
    assert not (plan.root / "wandb").exists()


def test_a_network_that_fails_is_one_warning_and_stops_no_training(tmp_path, monkeypatch, capsys):
    def refuse(**_):
        raise ConnectionError("no route")

    ended: list[bool] = []
    services = {"login": lambda **_: True, "teardown": lambda: ended.append(True)}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, Settings=dict, **services))
    plan = make_plan(tmp_path, *WORDS, "logger=wandb")
    work, holder = start_training(plan)
    with holder, show_losses([(plan.trained_models[0], plan)], every=0.02):
        write_losses(work, 1)
        time.sleep(0.1)
        write_losses(work, 1, 2)
        holder.kill()
    warning = f"warning: {plan.trained_models[0].short} is not shown at W&B while it trains: ConnectionError: no route"
    assert capsys.readouterr().out.split("\n") == [f"  {warning}", ""]
    assert ended, "a run that could not be begun would stay in use"
