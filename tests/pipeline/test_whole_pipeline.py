"""The whole pipeline as a user types it, at smoke size: runs, resumes, survives kills. A few minutes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from robustmerge.stage.address import REPOSITORY, read_manifest
from robustmerge.stage.records import read_examples, read_predictions, read_score
from tests.smoke_run import run_here, type_command

SEEN = ["scienceqa", "imagenet", "vqav2", "rec", "ocrvqa", "vizwiz", "flickr30k", "iconqa"]
N_TEST, N_VAL = 24, 8  # questions a task in profile=smoke


def files_under(root: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob(pattern)) if path.is_file()}


def test_training_makes_an_expert_a_task_and_the_multi_task_model(smoke):
    trained = sorted(path.name.rpartition("-")[0] for path in (smoke.root / "experts").iterdir())
    assert trained == sorted([*SEEN, "multi_task"])
    for folder in (smoke.root / "experts").iterdir():
        assert (folder / "manifest.json").exists()
        assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_every_source_answers_every_question_it_is_asked(smoke):
    assert {len(read_predictions(path)) for path in smoke.predictions()} == {N_TEST}
    n_tasks = Counter(path.parent.relative_to(smoke.root / "predictions").as_posix() for path in smoke.predictions())
    experts = [n for source, n in n_tasks.items() if source.startswith("expert/")]
    assert experts == [1] * 8, "each expert on its own task"
    others = [n for source, n in n_tasks.items() if not source.startswith("expert/")]
    assert set(others) == {12}
    assert 7 <= len(others) <= 12, "zero-shot, multi-task, five methods, and those whose chosen strength is another"
    for file in (smoke.root / "scores").rglob("*.json"):
        if not file.name.endswith(".manifest.json"):
            score = read_score(file)
            assert score.n_expected == (N_VAL if "val" in file.relative_to(smoke.root).parts else N_TEST)
            assert 0 <= score.value <= 100
            assert score.n_failed == 0


def test_the_report_has_every_row_every_task_and_the_published_values_apart(smoke):
    report = (smoke.root / "reports" / "main" / "report.md").read_text()
    methods = ("Task Arithmetic", "TIES", "DARE", "KnOTS-TIES", "RobustMerge")
    for row in ("Zero-shot", "Individual", "Multi-task", *methods):
        assert f"| {row}" in report
    assert "published" in report.lower()
    assert "69.23" in report, "the paper's individual average"
    assert "mean nothing" in report.lower(), "a smoke report says so"
    assert (smoke.root / "reports" / "main" / "report.html").exists()
    assert "RobustMerge" in smoke.printed


def test_a_second_run_starts_no_process_and_rewrites_no_result(smoke, tmp_path):
    """Nor does it ask again for answers that are gone, where their scores are there."""
    answers = next((smoke.root / "predictions" / "merged").glob("ties-*"))
    shutil.move(answers, tmp_path)
    try:
        before = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if "reports" not in path.parts}
        printed = type_command("quickstart", runs=smoke.runs).stdout
        after = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if "reports" not in path.parts}
    finally:
        shutil.move(tmp_path / answers.name, answers.parent)
    assert before == after
    assert re.search(r"\nreport: .*/reports/main/report\.md", printed)


def test_a_launcher_of_hydra_makes_each_point_of_a_sweep_a_job_of_its_own(smoke):
    words = ["profile=smoke", "logger=none", "-m", "hydra/launcher=joblib", "merge=average,svd"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "merge.py"), *words],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(smoke.runs)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 result, under") == 2
    for method in ("average", "svd"):
        assert (next((smoke.root / "merged").glob(f"{method}-*")) / "manifest.json").exists()


def test_the_manifest_tells_what_a_result_is_and_how_it_was_made(smoke):
    manifests = [read_manifest(file) for file in (smoke.root / "merged").glob("robustmerge-*/manifest.json")]
    (manifest,) = [m for m in manifests if m["identity"]["settings"]["strength"] == 2.0]  # not one to choose from
    assert manifest["identity"]["settings"]["prune"]["density"] == 0.2
    assert set(manifest["identity"]["inputs"]) == set(SEEN)
    assert {"commit", "dirty", "versions", "host", "seconds", "outputs"} <= set(manifest["record"])


def test_a_sweep_shares_one_table_and_dense_deltas_are_a_row_of_it(smoke, type_here):
    subset = ["tasks=[vqav2,rec]", "multi_task=false", "strength_grid=null", "report=sweep"]
    type_here("merge_eval", "-m", "merge=ties", "merge.space=delta,core", *subset, runs=smoke.runs)
    report = (smoke.root / "reports" / "sweep" / "report.md").read_text()
    assert "space=delta" in report
    assert "space=core" in report
    assert len(list((smoke.root / "merged").glob("ties-*/delta.safetensors"))) == 1


def test_any_adapter_folder_is_a_source_and_can_be_merged(smoke, type_here):
    (adapter,) = (smoke.root / "experts").glob("vqav2-*")
    (other,) = (smoke.root / "experts").glob("rec-*")
    experts = f"experts=[mine:{adapter},yours:{other}]"
    words = ["tasks=[vqav2]", "merge=robustmerge", "report=mine"]
    type_here("merge_eval", experts, *words, runs=smoke.runs)
    assert "RobustMerge" in (smoke.root / "reports" / "mine" / "report.md").read_text()


OWN_TASK = """# @package task.mine
title: Mine
seen: true
data: {{train: "{folder}/questions.json", test: "{folder}/questions.json", images: "{images}"}}
prompt: "{{text}} ¿Qué es?"
max_new_tokens: 6
parse: text
metric: ngram_f1
"""


def test_a_task_of_ones_own_is_trained_answered_and_scored(smoke, type_here, tmp_path):
    (data,) = (smoke.root / "data").glob("vqav2-*")
    questions = [
        {
            "question_id": number,
            "image": f"train_{number:05d}.png",
            "text": "<image>\nWas siehst du? 🦉",
            "answer": "日本",
        }
        for number in range(32)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(OWN_TASK.format(folder=tmp_path, images=data / "images"))
    words = ["--config-dir", str(tmp_path), "+task=mine", "tasks=[mine]"]
    type_here("train", *words, runs=smoke.runs)
    type_here("predict", *words, "source=expert/mine", runs=smoke.runs)
    assert "(32 of 32 scored)" in type_here("score", *words, "source=expert/mine", runs=smoke.runs)


def test_a_strength_chosen_on_val_is_a_row_of_its_own_and_a_source(smoke, type_here):
    """Two experts have three numbers to search, which CMA-ES does in generations of seven."""
    words = ["methods=[ties]", "strength_grid=[0.5]", "tasks=[vqav2,rec,tabmwp]", "multi_task=false", "report=chosen"]
    words += ["weight_search=[ties]", "search_budget=15"]
    printed = type_here("merge_eval", *words, runs=smoke.runs)
    assert "TIES: strength 0.707 (0.5 x the default's update) chosen on val: " in printed
    assert re.search(r"TIES: weights rec .*, vqav2 .* searched on val: .*, 15 merges tried", printed)
    assert "TIES, weights searched" in (smoke.root / "reports" / "chosen" / "report.md").read_text()
    for source in ("merged/ties@chosen", "merged/ties@searched"):
        scores = type_here("score", *words, f"source={source}", runs=smoke.runs)
        assert [line.split()[0] for line in scores.splitlines()] == [source] * 3
    evaluated = {path.name.rpartition("-")[0] for path in (smoke.root / "predictions" / "val").rglob("*.jsonl")}
    assert evaluated == set(SEEN), "no unseen task is evaluated before the choice"


def test_missing_experts_are_named_with_the_command_that_makes_them(smoke, type_here, capsys):
    with pytest.raises(SystemExit) as end:
        type_here("merge_eval", "peft.r=3", "tasks=[vqav2,rec]", runs=smoke.runs)
    refused = capsys.readouterr().err
    assert end.value.code == 2
    assert "experts/vqav2-" in refused
    assert "bash scripts/train_all.sh peft.r=3 'tasks=[vqav2,rec]' profile=smoke logger=none" in refused


def test_an_interrupt_is_one_message(tmp_path):
    started = _start("train_all", tmp_path, "tasks=[vqav2]")
    _wait_for(lambda: any(tmp_path.rglob("*.lock")), started)
    started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "type the same command to go on" in printed
    assert "Traceback" not in printed


def test_kills_at_any_moment_change_no_byte(smoke, tmp_path):
    """kill -9 while experts are trained, of the parent alone, and while questions are answered, of the whole group.

    All other results are those of the smoke run. The killed run has one process at a time, the other one had two.
    The moment within a stage is drawn; KILL_SEED draws others. A base's training is cut in tests/llava_ext.
    """
    killed, dare = tmp_path / "smoke" / smoke.root.name, ("methods=[dare]", "strength_grid=null")
    shutil.copytree(smoke.root, killed)
    again = ("experts/rec-*", "experts/vqav2-*", "merged/dare-*", "*/merged/dare-*")
    for path in [path for pattern in again for path in killed.glob(pattern)]:
        shutil.rmtree(path)
    draw = random.Random(int(os.environ.get("KILL_SEED", "0")))

    def kill_inside(program: str, *words: str, stage: Callable[[], bool], parent_alone: bool) -> None:
        started = _start(program, tmp_path, "jobs=1", *words)
        _wait_for(stage, started)
        time.sleep(draw.uniform(0, 0.3))
        assert started.poll() is None, started.communicate()
        (os.kill if parent_alone else os.killpg)(started.pid, signal.SIGKILL)
        started.communicate()

    kill_inside("train_all", stage=lambda: _inside_a_checkpoint(killed / "experts"), parent_alone=True)
    type_command("train_all", "jobs=1", runs=tmp_path)
    kill_inside("merge_eval", *dare, stage=lambda: any(killed.glob("predictions/merged/dare-*/*")), parent_alone=False)
    type_command("merge_eval", "jobs=1", *dare, runs=tmp_path)
    assert all(any(killed.glob(pattern)) for pattern in again)
    for pattern in RESULTS:
        files = files_under(killed, pattern)
        assert files, pattern
        for name, content in files.items():
            assert content == (smoke.root / name).read_bytes(), name


RESULTS = ("experts/*/adapter_model.safetensors", "merged/*/adapter_model.safetensors", "predictions/**/*.jsonl")


def _inside_a_checkpoint(runs: Path) -> bool:
    return any(not (path / "complete.json").exists() for path in runs.rglob("checkpoint-*"))


def _start(program: str, runs: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "scripts" / f"{program}.sh"), "profile=smoke", "logger=none", *words],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )


def _wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def test_what_exists_can_be_listed_with_what_differs_from_the_defaults(smoke, type_here):
    words = ["merge=robustmerge", "merge.prune.density=0.3", "tasks=[vqav2,rec]"]
    type_here("merge", *words, runs=smoke.runs)
    shown = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "runs.py")],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(smoke.runs)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (row,) = [line for line in shown.splitlines() if "prune.density=0.3" in line]
    assert row.strip().startswith("merged/robustmerge-")
    assert "experts/vqav2-" in shown


def test_cleaning_keeps_what_a_report_uses(smoke, tmp_path, monkeypatch, capsys):
    copied = tmp_path / "smoke" / "mini-tiny"
    shutil.copytree(smoke.root, copied)
    kept = set(smoke.predictions())
    shutil.rmtree(copied / "reports")
    shutil.copytree(smoke.root / "reports" / "main", copied / "reports" / "main")
    (copied / "merged" / "unused-00000000").mkdir()
    (copied / "merged" / "unused-00000000.seconds").write_text("12.00\n")
    monkeypatch.setenv("ROBUSTMERGE_RUNS", str(tmp_path))
    run_here(monkeypatch, "runs", "--clean", "--yes")
    assert "merged/unused-00000000" in capsys.readouterr().out
    assert not list((copied / "merged").glob("unused-*"))
    assert all((copied / path.relative_to(smoke.root)).exists() for path in kept)
    run_here(monkeypatch, "runs", "--clean")
    assert "nothing to remove" in capsys.readouterr().out


def test_ids_are_asked_of_the_task_that_has_them_and_an_unknown_one_is_refused(smoke, type_here, capsys):
    source = "source=merged/ties"
    (rec,), (iconqa,) = ((smoke.root / "data").glob(f"{task}-*") for task in ("rec", "iconqa"))
    ids = [read_examples(data / "test.jsonl")[0].question_id for data in (rec, iconqa)]
    shown = type_here("predict", source, f"ids=[{','.join(ids)}]", runs=smoke.runs)
    assert all(f"merged/ties on {name.partition('-')[0]}:\n  {name}: " in shown for name in ids)
    assert " on vqav2:" not in shown
    scored = type_here("score", source, f"ids=[{','.join(ids)}]", runs=smoke.runs)
    assert "a partial evaluation: 1 of 24" in scored
    with pytest.raises(SystemExit) as end:
        type_here("predict", source, f"ids=[{ids[0]},nobody]", runs=smoke.runs)
    assert end.value.code == 2
    assert "no task has a question nobody (ids); ids are like" in capsys.readouterr().err
