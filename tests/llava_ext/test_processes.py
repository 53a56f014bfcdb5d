"""Two processes of one training run under torchrun (gloo, on CPUs): the first decides, the other follows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_ext.launch import launch_command
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from pipeline.events import read_event
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.process import process_start
from tests.tiny_model import TEMPLATE, write_base, write_task

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER = Trainer(engine="ddp", device="cpu", processes=2)
RECIPE = Recipe(global_batch=4, max_steps=1, save_steps=0)


class GivenUp(Exception):
    pass


def describe(address: Address, base: Path, task: Path) -> dict:
    settings = Expert(tasks=("task",), peft=Peft(r=4), recipe=RECIPE, trainer=TRAINER, template=TEMPLATE)
    item = {"stage": "train", "name": address.path.name, "address": address.to_json(), "base": str(base)}
    return item | {"settings": dataclasses.asdict(settings), "data": {"task": str(task)}}


def start(items: list[dict], job: Path) -> subprocess.Popen:
    """The child program under torchrun, as the pipeline starts it."""
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job.write_text(json.dumps({"parent": parent, "items": items}))
    command, environment = launch_command(TRAINER, REPOSITORY / "pipeline" / "child.py", job)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


@pytest.mark.skipif(sys.platform != "linux", reason="two processes are tested on Linux")
def test_the_second_process_leaves_what_is_complete_and_waits_while_the_first_waits_for_a_lock(tmp_path):
    base, task = write_base(tmp_path / "base"), write_task(tmp_path / "task")
    complete, meanwhile, freed = (
        Address(tmp_path, tmp_path / name, {"stage": "train", "name": name})
        for name in ("complete", "meanwhile", "freed")
    )
    run_stage(complete, lambda folder: None, lambda _: None)
    events, lines = {name: threading.Event() for name in ("meanwhile", "freed")}, []

    def hold(address: Address) -> None:
        """Be another run that holds the lock until the child waits for it; then finish, or give up."""

        def work(folder: Path) -> None:
            assert events[address.path.name].wait(60)
            if address is freed:
                raise GivenUp

        with contextlib.suppress(GivenUp):
            run_stage(address, work, lambda _: None)

    others = [threading.Thread(target=hold, args=(address,)) for address in (meanwhile, freed)]
    for other in others:
        other.start()
    child = start([describe(address, base, task) for address in (complete, meanwhile, freed)], tmp_path / "job.json")
    watchdog = threading.Timer(60, child.terminate)
    watchdog.start()
    for line in child.stdout:
        lines.append(line)
        for name, event in events.items():
            report = read_event(line)
            if report is not None and report.text.startswith("waiting for another run") and name in report.text:
                event.set()
    assert child.wait() == 0, "".join(lines[-60:])
    watchdog.cancel()
    for other in others:
        other.join()
    for address in (complete, meanwhile):
        assert [path.name for path in address.path.iterdir()] == ["manifest.json"]
    assert (freed.path / "adapter_model.safetensors").exists() and freed.is_complete()
    assert not (freed.path / "unfinished").exists()
    assert sum("waiting for another run" in line for line in lines) == 2
