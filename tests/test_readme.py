"""Every command of the README runs at smoke size, unless it says what it needs."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
import yaml

from pipeline.config import read_config
from pipeline.program import CONFIGS, compose, list_options
from robustmerge.method import read_method
from robustmerge.stage.address import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
# the last two are what runs this test
SKIPPED = (
    "# needs GPUs",
    "# about an hour",
    "# installs lmms-eval",
    "# asks the Hub",
    "scripts/test.sh",
    "scripts/setup.sh",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) > 10
    return [line for line in lines if not any(mark in line for mark in SKIPPED)]


@pytest.fixture(scope="session")
def places(smoke, tmp_path_factory) -> dict[str, str]:
    """What stands for the README's path/to/...: two experts and a picture of the smoke run, a folder for the rest."""
    (vqav2,), (rec,) = ((smoke.root / "experts").glob(f"{task}-*") for task in ("vqav2", "rec"))
    (data,) = (smoke.root / "data").glob("vqav2-*")
    picture = str(data / "images" / "test_00000.png")
    rest = str(tmp_path_factory.mktemp("readme"))
    return {"path/to/vqav2": str(vqav2), "path/to/rec": str(rec), "path/to/picture.png": picture, "path/to": rest}


def put(places: dict[str, str], text: str) -> str:
    for place, found in places.items():
        text = text.replace(place, found)
    return text


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_runs(line, smoke, places):
    line = put(places, line)
    if not any(word in line for word in ("profile=smoke", "--help", "runs.py", "doctor.py")):
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
        assert (REPOSITORY / place.partition("#")[0]).exists(), place


def test_the_task_of_the_readme_is_a_task(tmp_path):
    (described,) = blocks("yaml")
    node = yaml.safe_load(described)
    point = compose("train_all", [])
    point["task"]["mine"] = node
    task = read_config(point).tasks[-1]
    assert (task.name, task.title) == ("mine", "My task")
    assert described.startswith("# @package task.mine\n")
    assert not (CONFIGS / "task" / "mine.yaml").exists()


def test_the_python_of_the_readme_runs(places):
    for block in blocks("python"):
        exec(compile(put(places, block), "README.md", "exec"), {})


def test_every_method_is_in_the_table_with_its_file_and_the_code_of_its_formula():
    rows = re.findall(r"^\| \[`(\w+)`\]\(configs/merge/(\w+)\.yaml\) \|.*\]\((https:.*?)\)", README, flags=re.M)
    assert sorted(name for name, _, _ in rows) == list_options("merge")
    for name, file, paper in rows:
        assert (file, paper) == (name, read_method(name).paper)
    named = re.findall(r"\[`(\w+)`\]\((robustmerge/\w+\.py)\)", README)
    assert len(named) > 8
    for function, place in named:
        assert f"def {function}(" in (REPOSITORY / place).read_text(), (function, place)
