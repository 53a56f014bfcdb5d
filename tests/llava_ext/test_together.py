"""Prediction by several processes under torchrun, killed and resumed by one: the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.predict import list_shards, predict, read_shards
from eval.settings import Generation
from llava_ext.generate import Generator
from llava_ext.launch import launch_command
from llava_ext.settings import Trainer
from robustmerge.stage.address import REPOSITORY, Address
from robustmerge.stage.process import process_start
from robustmerge.stage.records import read_predictions, write_examples
from tests.tiny_model import TEMPLATE, draw_examples, write_base

QUESTIONS = 160
SETTINGS = Generation("task", "{text}", TEMPLATE, max_new_tokens=24, batch_size=2)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A base and questions with and without pictures."""
    root = tmp_path_factory.mktemp("together")
    write_base(root / "base")
    write_examples(root / "test.jsonl", draw_examples(root, QUESTIONS))
    return root


def start(ground: Path, name: str, processes: int) -> tuple[Address, subprocess.Popen]:
    """The child program, as the pipeline starts it: plain for one process, under torchrun for several."""
    address = Address(ground, ground / f"{name}.jsonl", {"stage": "predict"})
    item = {"stage": "predict", "name": name, "address": address.to_json(), "settings": dataclasses.asdict(SETTINGS)}
    item |= {"base": str(ground / "base"), "adapter": None, "device": "cpu", "questions": str(ground / "test.jsonl")}
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job = ground / f"{name}-{processes}.json"
    job.write_text(json.dumps({"parent": parent, "items": [item]}))
    trainer = Trainer(engine="ddp" if processes > 1 else "cpu", device="cpu", processes=processes)
    command, environment = launch_command(trainer, REPOSITORY / "pipeline" / "child.py", job)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return address, subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def finish(ground: Path, name: str, processes: int) -> bytes:
    address, child = start(ground, name, processes)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    assert not list_shards(address.path)
    return address.path.read_bytes()


def kill_half_way(ground: Path, name: str, processes: int) -> int:
    """kill -9 of the first process as soon as each has answered something; how many answers are there."""
    address, child = start(ground, name, processes)
    shards = [address.path.with_name(f"{address.path.name}.part-{rank}") for rank in range(processes)]
    while child.poll() is None and not all(shard.exists() and shard.stat().st_size for shard in shards):
        time.sleep(0.005)
    os.kill(json.loads(address.lock.read_text())["pid"], signal.SIGKILL)
    child.communicate(timeout=60)  # torchrun ends the others
    assert child.returncode != 0
    return len(read_shards(address.path))


@pytest.mark.skipif(sys.platform != "linux", reason="several processes are tested on Linux")
def test_a_killed_evaluation_goes_on_with_another_number_of_processes_to_the_same_bytes(ground):
    whole = Address(ground, ground / "whole.jsonl", {"stage": "predict"})
    generate = Generator(ground / "base", TEMPLATE)
    predict(whole, SETTINGS, ground / "test.jsonl", generate, lambda _: None, progress=False)
    assert len(read_predictions(whole.path)) == QUESTIONS
    left = kill_half_way(ground, "killed", 2)
    assert 0 < left < QUESTIONS
    assert finish(ground, "killed", 1) == whole.path.read_bytes()
