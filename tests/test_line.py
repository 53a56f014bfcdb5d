"""The whole line as a user types it, at smoke size: runs, resumes, survives kills. About three minutes.

bash scripts/test.sh tests/test_line.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from robustmerge.records import read_predictions, read_score
from robustmerge.runs import REPOSITORY, read_manifest
from tests.smoke_line import type_command

SEEN = ["scienceqa", "imagenet", "vqav2", "rec", "ocrvqa", "vizwiz", "flickr30k", "iconqa"]
N_TEST = 24  # questions a task in profile=smoke


def files_under(root: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob(pattern)) if path.is_file()}


def test_training_makes_an_expert_a_task_and_the_multi_task_model(smoke):
    made = sorted(path.name.rpartition("-")[0] for path in (smoke.root / "experts").iterdir())
    assert made == sorted([*SEEN, "multi_task"])
    for folder in (smoke.root / "experts").iterdir():
        assert (folder / "manifest.json").exists()
        assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_every_source_answers_every_question_it_is_asked(smoke):
    n_questions = [len(read_predictions(path)) for path in smoke.predictions()]
    assert set(n_questions) == {N_TEST}
    assert len(n_questions) == 12 * 4 + 8  # zero-shot, multi-task and two methods on all; each expert on its own
    for file in (smoke.root / "scores").rglob("*.json"):
        if not file.name.endswith(".manifest.json"):
            score = read_score(file)
            assert score.n_expected == N_TEST
            assert 0 <= score.value <= 100
            assert score.n_failed == 0


def test_the_report_has_every_row_every_task_and_the_published_values_apart(smoke):
    report = (smoke.root / "reports" / "main" / "report.md").read_text()
    for row in ("Zero-shot", "Individual", "Multi-task", "Task Arithmetic", "RobustMerge"):
        assert f"| {row}" in report
    assert "published" in report.lower()
    assert "69.23" in report, "the paper's individual average"
    assert "mean nothing" in report, "a smoke report says so"
    assert (smoke.root / "reports" / "main" / "report.html").exists()
    assert "RobustMerge" in smoke.printed


def test_a_second_run_starts_no_process_and_rewrites_no_result(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if "reports" not in path.parts}
    type_command("train_all", runs=smoke.runs)
    type_command("merge_eval", runs=smoke.runs)
    assert before == {path: path.stat().st_mtime_ns for path in smoke.root.rglob("*") if "reports" not in path.parts}


def test_the_manifest_tells_what_a_result_is_and_how_it_was_made(smoke):
    (folder,) = (smoke.root / "merged").glob("robustmerge-*")
    manifest = read_manifest(folder / "manifest.json")
    assert manifest["identity"]["settings"]["prune"]["density"] == 0.2
    assert set(manifest["identity"]["inputs"]) == set(SEEN)
    assert {"commit", "dirty", "versions", "host", "seconds", "outputs"} <= set(manifest["record"])


def test_one_method_can_be_changed_and_a_sweep_shares_one_table(smoke):
    words = ["merge=task_arithmetic", "merge.strength=0.2,0.4", "tasks=[vqav2,rec]", "report=sweep"]
    type_command("merge_eval", "-m", *words[:2], words[2], words[3], runs=smoke.runs)
    report = (smoke.root / "reports" / "sweep" / "report.md").read_text()
    assert "strength=0.2" in report
    assert "strength=0.4" in report


def test_any_adapter_folder_is_a_source_and_can_be_merged(smoke):
    (adapter,) = (smoke.root / "experts").glob("vqav2-*")
    (other,) = (smoke.root / "experts").glob("rec-*")
    experts = f"experts=[mine:{adapter},yours:{other}]"
    type_command("merge_eval", experts, "tasks=[vqav2]", "merge=robustmerge", "report=mine", runs=smoke.runs)
    assert "RobustMerge" in (smoke.root / "reports" / "mine" / "report.md").read_text()


def test_missing_experts_are_named_with_the_command_that_makes_them(smoke):
    said = type_command("merge_eval", "peft.r=3", "tasks=[vqav2,rec]", runs=smoke.runs, check=False)
    assert said.returncode == 2
    assert "experts/vqav2-" in said.stderr
    assert "bash scripts/train_all.sh profile=smoke peft.r=3 'tasks=[vqav2,rec]'" in said.stderr


def test_an_interrupt_is_one_message(tmp_path):
    started = _start("train_all", tmp_path, "tasks=[vqav2]")
    _wait_for(lambda: any(tmp_path.rglob("*.lock")), started)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "type the same command to go on" in said
    assert "Traceback" not in said


def test_kills_at_any_moment_change_no_prediction(smoke, tmp_path):
    """kill -9 of the whole group and of the parent alone, in turn; one process at a time instead of two."""
    tasks = "tasks=[vqav2,rec]"
    type_command("merge_eval", tasks, "multi_task=false", "report=pair", runs=smoke.runs)
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    words = [tasks, "multi_task=false", "report=pair", "jobs=1", "model.recipe.save_steps=2"]
    moments = [("train_all", rng.uniform(1, 12)) for _ in range(4)]
    moments += [("train_all", "checkpoint"), ("train_all", None)]
    moments += [("merge_eval", rng.uniform(1, 8)) for _ in range(3)] + [("merge_eval", None)]
    for index, (program, moment) in enumerate(moments):
        started = _start(program, tmp_path, *words)
        if moment is None:
            assert started.wait(600) == 0, started.communicate()
            continue
        if moment == "checkpoint":
            _wait_for(lambda: any(tmp_path.rglob("checkpoint-*")), started)
        else:
            time.sleep(moment)
        if index % 2:
            os.kill(started.pid, signal.SIGKILL)
        else:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
    expected = files_under(smoke.root, "predictions/**/vqav2-*.jsonl") | files_under(
        smoke.root, "predictions/**/rec-*.jsonl"
    )
    found = files_under(tmp_path / "smoke" / smoke.root.name, "predictions/**/*.jsonl")
    assert found
    assert {name: expected[name] == content for name, content in found.items()} == dict.fromkeys(found, True)


def _start(program: str, runs: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "scripts" / f"{program}.sh"), "profile=smoke", "logger=none", *words],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture(scope="module")
def listed(smoke) -> str:
    done = subprocess.run(
        [str(REPOSITORY / ".venv/bin/python") if (REPOSITORY / ".venv").exists() else "python", "scripts/runs.py"],
        cwd=REPOSITORY,
        env={**os.environ, "ROBUSTMERGE_RUNS": str(smoke.runs)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_what_exists_can_be_listed_with_what_differs(smoke, listed):
    assert "merged/robustmerge-" in listed
    assert "experts/vqav2-" in listed
    assert json.loads((smoke.root / "reports" / "main" / "addresses.json").read_text())
