"""Engines of several processes, and DeepSpeed, on CPUs: against one plain process, beside other runs, after a kill.

Accelerate has DeepSpeed over several processes on GPUs only, so two CPU processes of zero2 run as ddp (gloo), and
DeepSpeed itself, ZeRO-2 and ZeRO-3, runs in one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava_ext.adapters import add_adapter
from llava_ext.checkpoints import MARKER
from llava_ext.launch import launch_command
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, train_expert
from llava_ext.trainer import Journal
from pipeline.events import read_event
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.process import process_start
from robustmerge.stage.settings import build
from tests.tiny_model import TEMPLATE, read_losses, write_base, write_task

REPOSITORY = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux")
RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=4, save_steps=2)


def describe_zero2(engine: str = "zero2", processes: int = 2) -> Trainer:
    described = yaml.safe_load((REPOSITORY / f"configs/trainer/{engine}.yaml").read_text())
    small = {"device": "cpu", "processes": processes, "precision": "fp32", "per_device_batch": 2, "workers": 0}
    return build(Trainer, {**described, **small}, "trainer")


class GivenUp(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Runs:
    """Results of one command of two processes, and what it printed: one was complete, another run made one meanwhile
    and gave up the third, which the command has trained then."""

    complete: Address
    meanwhile: Address
    freed: Address
    printed: str


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> tuple[Path, Path]:
    """A base and a task."""
    root = tmp_path_factory.mktemp("material")
    return write_base(root / "base"), write_task(root / "task")


@pytest.fixture(scope="module")
def runs(material, tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    complete, meanwhile, freed = addresses = [address_of(root / name) for name in ("complete", "meanwhile", "freed")]
    run_stage(complete, lambda folder: None, lambda _: None)
    is_awaited = {address.path.name: threading.Event() for address in (meanwhile, freed)}

    def hold(address: Address) -> None:
        """Be another run that holds the lock until the child waits for it; then finish, or give up."""

        def work(folder: Path) -> None:
            assert is_awaited[address.path.name].wait(60)
            if address is freed:
                raise GivenUp

        with contextlib.suppress(GivenUp):
            run_stage(address, work, lambda _: None)

    others = [threading.Thread(target=hold, args=(address,)) for address in (meanwhile, freed)]
    for other in others:
        other.start()
    child = start(describe_zero2(), addresses, *material)
    watchdog = threading.Timer(240, child.terminate)
    watchdog.start()
    lines = []
    for line in child.stdout:
        lines.append(line)
        event = read_event(line)
        for name, awaited in is_awaited.items():
            if event is not None and event.text.startswith("waiting for another run") and name in event.text:
                awaited.set()
    assert child.wait() == 0, "".join(lines[-60:])
    watchdog.cancel()
    for other in others:
        other.join()
    return Runs(complete, meanwhile, freed, "".join(lines))


@pytest.fixture(scope="module")
def ground(material, runs, tmp_path_factory):
    """A base, a task, the folder of an expert that two processes have trained, and of one that a plain one has."""
    base, task = material
    plain = tmp_path_factory.mktemp("plain") / "cpu"
    train_expert(address_of(plain), settings_of(Trainer()), base, {"task": task}, LLAVA_TRAINING, lambda _: None)
    return base, task, runs.freed.path, plain


def test_the_second_process_leaves_what_is_complete_and_waits_while_the_first_waits_for_a_lock(runs):
    for address in (runs.complete, runs.meanwhile):
        assert [path.name for path in address.path.iterdir()] == ["manifest.json"]
    assert (runs.freed.path / "adapter_model.safetensors").exists() and runs.freed.is_complete()
    assert not (runs.freed.path / "unfinished").exists()
    assert runs.printed.count("waiting for another run") == 2


def settings_of(trainer: Trainer) -> Expert:
    peft = Peft(r=4, dropout=0.0)  # each process would drop other inputs
    return Expert(tasks=("task",), peft=peft, recipe=RECIPE, trainer=trainer, template=TEMPLATE)


def address_of(folder: Path) -> Address:
    return Address(folder.parent, folder, {"stage": "train", "name": folder.name})


def test_two_processes_train_the_adapter_of_one_plain_process(ground):
    _, _, folder, plain = ground
    assert describe_zero2().accumulation(8) == (2, 2)
    assert not list(folder.rglob("*.pt"))
    assert_same_training(folder, plain)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_trains_the_adapter_of_one_plain_process(ground, tmp_path, engine):
    base, task, _, plain = ground
    trainer = describe_zero2(engine, processes=1)
    assert trainer.uses_deepspeed and not describe_zero2(engine).uses_deepspeed
    run(trainer, tmp_path / engine, base, task)
    assert_same_training(tmp_path / engine, plain)


@pytest.mark.parametrize("float32", [True, False])
def test_what_is_trained_has_one_precision(ground, float32):
    """ZeRO-3 partitions it in one piece, which tensors of two precisions do not make."""
    model = LlavaForConditionalGeneration.from_pretrained(ground[0], dtype=torch.bfloat16)
    adapted = add_adapter(model, Peft(r=4), "base", 0, "task", float32)
    dtypes = {weight.dtype for weight in adapted.parameters() if weight.requires_grad}
    assert dtypes == {torch.float32 if float32 else torch.bfloat16}


def assert_same_training(folder: Path, plain: Path) -> None:
    assert list_losses(folder) == pytest.approx(list_losses(plain), abs=1e-5)
    tensors, expected = (load_file(place / "adapter_model.safetensors") for place in (folder, plain))
    assert tensors.keys() == expected.keys()
    assert max(float(weight.abs().max()) for name, weight in expected.items() if "lora_B" in name) > 1e-2
    for name, weight in expected.items():
        assert float((weight - tensors[name]).abs().max()) < 1e-4, name


def list_losses(folder: Path) -> list[float]:
    losses = [step["loss"] for step in read_losses(folder)]
    assert len(losses) == RECIPE.max_steps
    return losses


def test_two_processes_go_on_from_the_checkpoint_of_one_if_that_is_allowed(ground, tmp_path, monkeypatch):
    base, task, _, plain = ground
    folder = tmp_path / "more"

    def end_at_three(self, args, state, control, **rest):
        if state.global_step == 3:
            raise GivenUp

    with monkeypatch.context() as patch, pytest.raises(GivenUp):
        patch.setattr(Journal, "on_step_end", end_at_three)
        one = settings_of(Trainer())
        train_expert(address_of(folder), one, base, {"task": task}, LLAVA_TRAINING, lambda _: None)
    two = Trainer("ddp", "cpu", 2, resume="any")
    assert "going on from checkpoint-2 of 4 steps" in run(two, folder, base, task)
    assert_same_training(folder, plain)
    before = {"up_to_step": 2, "engine": "cpu", "processes": 1, "batch": 8, "accumulation": 1}
    assert json.loads((folder / "training.json").read_text())["resumed_across"] == [before]


def test_zero2_goes_on_with_the_same_bytes_after_all_its_processes_were_killed(ground, tmp_path):
    base, task, whole, _ = ground
    folder = tmp_path / "zero2"
    child = start(describe_zero2(), [address_of(folder)], base, task)
    marker, deadline = folder / "unfinished" / "checkpoint-2" / MARKER, time.monotonic() + 60
    while not marker.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    processes = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    for process in processes:
        process.kill()
    child.communicate()
    assert len(processes) >= 3 and marker.exists() and not (folder / "adapter_model.safetensors").exists()
    assert "going on from checkpoint-2 of 4 steps" in run(describe_zero2(), folder, base, task)
    assert (folder / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert read_losses(folder) == read_losses(whole)


def run(trainer: Trainer, folder: Path, base: Path, task: Path) -> str:
    """Train through the child program, as the pipeline does. Returns what it printed."""
    child = start(trainer, [address_of(folder)], base, task)
    output, _ = child.communicate(timeout=240)
    assert child.returncode == 0, output[-6000:]
    return output


def start(trainer: Trainer, addresses: list[Address], base: Path, task: Path) -> subprocess.Popen:
    settings, data = dataclasses.asdict(settings_of(trainer)), {"task": str(task)}
    item = {"stage": "train", "settings": settings, "base": str(base), "data": data, "family": "llava"}
    items = [{**item, "name": address.path.name, "address": address.to_json()} for address in addresses]
    job = addresses[-1].path.with_suffix(".job.json")
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job.write_text(json.dumps({"parent": parent, "items": items}))
    command, environment = launch_command(trainer, REPOSITORY / "pipeline" / "child.py", job)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
