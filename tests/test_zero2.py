"""DeepSpeed ZeRO-2 for real: two CPU processes under torchrun (gloo), against one plain process and after a kill.

Run: pytest tests/test_zero2.py (Linux, about 25 s)
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from llava_ext.checkpoints import MARKER
from llava_ext.launch import launch_command
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from robustmerge.runs import Address, process_start
from robustmerge.settings import build
from tests.tiny_model import TEMPLATE, write_base, write_task

REPOSITORY = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux")
RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=4, save_steps=2)


def describe_zero2() -> Trainer:
    described = yaml.safe_load((REPOSITORY / "configs/trainer/zero2.yaml").read_text())
    small = {"device": "cpu", "processes": 2, "precision": "fp32", "per_device_batch": 2, "workers": 0}
    return build(Trainer, {**described, **small}, "trainer")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, a task, and the folder of an expert that two processes of ZeRO-2 have trained."""
    root = tmp_path_factory.mktemp("ground")
    base, task = write_base(root / "base"), write_task(root / "task")
    run(describe_zero2(), root / "zero2", base, task)
    return base, task, root / "zero2"


def test_two_processes_of_zero2_train_the_adapter_of_one_plain_process(ground, tmp_path):
    base, task, folder = ground
    assert describe_zero2().accumulation(8) == (2, 2)
    run(Trainer(), tmp_path / "cpu", base, task)
    plain, spread = (load_file(found / "adapter_model.safetensors") for found in (tmp_path / "cpu", folder))
    assert not list(folder.rglob("*.pt"))
    assert plain.keys() == spread.keys()
    assert max(float(weight.abs().max()) for name, weight in plain.items() if "lora_B" in name) > 1e-2
    for name, weight in plain.items():
        assert float((weight - spread[name]).abs().max()) < 1e-3, name


def test_zero2_goes_on_with_the_same_bytes_after_all_its_processes_were_killed(ground, tmp_path):
    base, task, whole = ground
    folder = tmp_path / "zero2"
    child = start(describe_zero2(), folder, base, task)
    marker, deadline = folder / "unfinished" / "checkpoint-2" / MARKER, time.monotonic() + 60
    while not marker.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    processes = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    for process in processes:
        process.kill()
    child.communicate()
    assert len(processes) >= 3 and marker.exists() and not (folder / "adapter_model.safetensors").exists()
    assert "going on from checkpoint-2 of 4 steps" in run(describe_zero2(), folder, base, task)
    for name in ("adapter_model.safetensors", "losses.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def run(trainer: Trainer, folder: Path, base: Path, task: Path) -> str:
    """Train through the child program, as the line does. Returns what it printed."""
    child = start(trainer, folder, base, task)
    said, _ = child.communicate(timeout=240)
    assert child.returncode == 0, said[-6000:]
    return said


def start(trainer: Trainer, folder: Path, base: Path, task: Path) -> subprocess.Popen:
    peft = Peft(r=4, dropout=0.0)  # each process would drop other inputs
    settings = Expert(tasks=("task",), peft=peft, recipe=RECIPE, trainer=trainer, template=TEMPLATE)
    address = Address(folder.parent, folder, {"stage": "train", "engine": trainer.engine})
    item = {"stage": "train", "name": folder.name, "address": address.to_json(), "base": str(base)}
    item |= {"settings": dataclasses.asdict(settings), "data": {"task": str(task)}}
    job = folder.with_suffix(".job.json")
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job.write_text(json.dumps({"parent": parent, "items": [item]}))
    command, environment = launch_command(trainer, REPOSITORY / "scripts" / "child.py", job)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
