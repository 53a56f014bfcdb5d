"""DeepSpeed ZeRO-2 for real: two CPU processes under torchrun (gloo) against one plain process.

Run: pytest tests/test_zero2.py (Linux, about 20 s)
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from llava_ext.launch import launch_command
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from robustmerge.runs import Address, process_start
from robustmerge.settings import build
from tests.tiny_model import TEMPLATE, write_base, write_task

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux")
def test_two_processes_of_zero2_train_the_adapter_of_one_plain_process(tmp_path):
    base, task = write_base(tmp_path / "base"), write_task(tmp_path / "task")
    described = yaml.safe_load((REPOSITORY / "configs/trainer/zero2.yaml").read_text())
    small = {"device": "cpu", "processes": 2, "precision": "fp32", "per_device_batch": 2, "workers": 0}
    zero2 = build(Trainer, {**described, **small}, "trainer")
    assert zero2.accumulation(8) == (2, 2)
    recipe = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=4, save_steps=2)
    found = {}
    for trainer in (Trainer(), zero2):
        peft = Peft(r=4, dropout=0.0)  # each process would drop other inputs
        settings = Expert(tasks=("task",), peft=peft, recipe=recipe, trainer=trainer, template=TEMPLATE)
        folder = tmp_path / trainer.engine
        run(trainer, settings, folder, base, task)
        found[trainer.engine] = load_file(folder / "adapter_model.safetensors")
        assert not list(folder.rglob("*.pt"))
    plain, spread = found["cpu"], found["zero2"]
    assert plain.keys() == spread.keys()
    assert max(float(weight.abs().max()) for name, weight in plain.items() if "lora_B" in name) > 1e-2
    for name, weight in plain.items():
        assert float((weight - spread[name]).abs().max()) < 1e-3, name


def run(trainer: Trainer, settings: Expert, folder: Path, base: Path, task: Path) -> None:
    """Train through the child program, as the line does."""
    address = Address(folder.parent, folder, {"stage": "train", "engine": trainer.engine})
    item = {"stage": "train", "name": folder.name, "address": address.to_json(), "base": str(base)}
    item |= {"settings": dataclasses.asdict(settings), "data": {"task": str(task)}}
    job = folder.with_suffix(".job.json")
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job.write_text(json.dumps({"parent": parent, "items": [item]}))
    command, environment = launch_command(trainer, REPOSITORY / "scripts" / "child.py", job)
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
