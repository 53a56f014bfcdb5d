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

QUESTIONS = 80
SETTINGS = Generation("task", "{text}", TEMPLATE, max_new_tokens=24, batch_size=2)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A base and questions with and without pictures."""
    root = tmp_path_factory.mktemp("together")
    write_base(root / "base")
    write_examples(root / "test.jsonl", draw_examples(root, QUESTIONS))
    return root


def kill_half_way(ground: Path, address: Address) -> int:
    """kill -9 of the first of two processes as soon as each has answered something; how many answers are there."""
    item = {
        "stage": "predict",
        "name": "killed",
        "address": address.to_json(),
        "settings": dataclasses.asdict(SETTINGS),
    }
    item |= {
        "base": str(ground / "base"),
        "family": "llava",
        "adapter": None,
        "device": "cpu",
        "questions": str(ground / "test.jsonl"),
    }
    parent = {"pid": os.getpid(), "start": process_start(os.getpid())}
    job = ground / "job.json"
    job.write_text(json.dumps({"parent": parent, "items": [item]}))
    trainer = Trainer(engine="ddp", device="cpu", processes=2)
    command, environment = launch_command(trainer, REPOSITORY / "pipeline" / "child.py", job)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    child = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
    shards = [address.path.with_name(f"{address.path.name}.part-{rank}") for rank in range(2)]
    while child.poll() is None and not all(shard.exists() and shard.stat().st_size for shard in shards):
        time.sleep(0.005)
    os.kill(json.loads(address.lock.read_text())["pid"], signal.SIGKILL)
    child.communicate(timeout=60)  # torchrun ends the other
    assert child.returncode != 0
    return len(read_shards(address.path))


@pytest.mark.skipif(sys.platform != "linux", reason="several processes are tested on Linux")
def test_a_killed_evaluation_goes_on_with_another_number_of_processes_to_the_same_bytes(ground):
    whole, killed = (Address(ground, ground / name, {"stage": "predict"}) for name in ("whole.jsonl", "killed.jsonl"))
    generate = Generator(ground / "base", TEMPLATE)

    def answer(address: Address) -> bytes:
        predict(address, SETTINGS, ground / "test.jsonl", generate, lambda _: None, progress=False)
        assert len(read_predictions(address.path)) == QUESTIONS and not list_shards(address.path)
        return address.path.read_bytes()

    left = kill_half_way(ground, killed)
    assert 0 < left < QUESTIONS
    assert answer(killed) == answer(whole)
