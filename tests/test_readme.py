"""Every command of the README runs at smoke size, unless it says what it needs."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
import yaml

from robustmerge.runs import REPOSITORY
from scripts.config import read_config
from scripts.program import CONFIGS, compose

README = (REPOSITORY / "README.md").read_text()
SKIPPED = ("# needs GPUs", "scripts/test.sh", "scripts/setup.sh")  # the last two are what runs this test


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) > 10
    return [line for line in lines if not any(mark in line for mark in SKIPPED)]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_runs(line, smoke):
    if not any(word in line for word in ("profile=smoke", "--help", "runs.py")):
        line += " profile=smoke"
    done = subprocess.run(
        ["bash", "-c", line.replace(".venv/bin/python", str(smoke.python))],
        cwd=REPOSITORY,
        env={**os.environ, "ROBUSTMERGE_RUNS": str(smoke.runs), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_place_that_the_readme_names_exists():
    places = re.findall(r"\]\(((?!https?:)[^)]+)\)", README)
    assert len(places) > 8
    for place in places:
        assert (REPOSITORY / place).exists(), place


def test_the_task_of_the_readme_is_a_task(tmp_path):
    (described,) = blocks("yaml")
    node = yaml.safe_load(described)
    point = compose("train_all", [])
    point["task"]["mine"] = node
    task = read_config(point).tasks[-1]
    assert (task.name, task.title) == ("mine", "My task")
    assert described.startswith("# @package task.mine\n")
    assert not (CONFIGS / "task" / "mine.yaml").exists()


def test_the_python_of_the_readme_runs():
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
