"""Training on several machines: how they meet, and how the run ends on all of them when one is lost."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llava_ext import heartbeat
from llava_ext.heartbeat import DONE, FAILED, Machine, find_lost
from llava_ext.launch import count_parallel_runs, find_meeting, launch_command, trainer_for_answers
from llava_ext.settings import Trainer
from robustmerge.stage.settings import ConfigError, UserError

TWO = Trainer("ddp", "cpu", nodes=2, processes=1)
PLACES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NODEID", "SLURM_JOB_NODELIST", "SLURM_JOB_ID")


@pytest.fixture(autouse=True)
def _nothing_is_said(monkeypatch):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


def test_every_machine_starts_torchrun_alike_but_for_its_number(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "first")
    commands = []
    for rank in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", rank)
        commands.append(launch_command(TWO, Path("child.py"), Path("job"), name="1a2b3c4d")[0])
    one, two = ([word for word in command if "node_rank" not in word] for command in commands)
    assert one == two and "--master_addr=first" in one and "--standalone" not in one
    assert [word for command in commands for word in command if "node_rank" in word] == [
        "--node_rank=0", "--node_rank=1"
    ]  # fmt: skip


def test_machines_that_train_different_experts_do_not_meet(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "1")
    one, other = (
        {word for word in launch_command(TWO, Path("c"), Path("j"), name=n)[0] if "rdzv_id" in word} for n in "ab"
    )
    assert one != other


def test_slurm_says_where_the_machines_meet(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[03-04]" ] && printf "node03\\nnode04\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"NODEID": "1", "JOB_NODELIST": "node[03-04]", "JOB_ID": "12007"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    meeting = find_meeting(2)
    assert (meeting.rank, meeting.address, meeting.port) == (1, "node03", 29507)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "number of this machine, 0 to 1, in NODE_RANK .*got ''"),
        ({"NODE_RANK": "2"}, "0 to 1.*got '2'"),
        ({"NODE_RANK": "1"}, "first machine in MASTER_ADDR"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "none"}, "MASTER_PORT must be a number.*'none'"),
    ],
)
def test_what_is_missing_is_told_before_anything_starts(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        count_parallel_runs(TWO, 1)


def test_the_global_batch_is_shared_by_the_processes_of_all_machines():
    two = dataclasses.replace(TWO, processes=4, per_device_batch=8)
    assert two.accumulation(128) == (8, 2)
    with pytest.raises(ConfigError, match="8 processes cannot share a global batch of 12 equally .trainer.nodes"):
        two.accumulation(12)
    with pytest.raises(ConfigError, match="engine cpu has one process, got 2 .nodes"):
        Trainer(nodes=2)
    assert trainer_for_answers(two).nodes == 1


@pytest.mark.parametrize(
    ("said", "seconds", "lost"),
    [
        ("b 7", 19, False),
        ("b 7", 21, True),
        (f"b {DONE}", 999, False),
        (f"b {FAILED}", 39, False),
        (f"b {FAILED}", 41, True),
    ],
)
def test_a_machine_is_lost_when_it_is_silent_and_has_not_said_that_it_is_done(said, seconds, lost):
    machine = Machine(1, said, time.monotonic() - seconds)
    assert find_lost([Machine(0, "a 7"), machine]) is (machine if lost else None)


def test_the_machine_that_fell_silent_is_named_and_not_one_that_failed_because_of_it():
    long_ago = time.monotonic() - 99
    failed, silent = Machine(1, f"b {FAILED}", long_ago), Machine(2, "c 7", long_ago)
    assert str(find_lost([Machine(0, "a 7"), failed, silent])) == "machine 2 (c)"


WORK = """
import sys
import torch
from llava_ext import heartbeat
from pipeline.child import run_and_exit
heartbeat.BEAT, heartbeat.SILENCE = 0.2, 2.0

def work():
    torch.distributed.init_process_group("gloo")
    print("begun", flush=True)
    while True:
        torch.distributed.all_reduce(torch.ones(1))

run_and_exit(work)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="several processes are tested on Linux")
def test_when_one_of_two_machines_is_killed_the_other_ends_and_names_it(monkeypatch, tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(20000 + os.getpid() % 9000))
    machines = []
    for rank in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", rank)
        command, environment = launch_command(TWO, tmp_path / "work.py", tmp_path / "job", name=tmp_path.name)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        machines.append(subprocess.Popen(command, env=environment, **pipes))
    first, second = machines
    for machine in machines:
        assert any("begun" in line for line in machine.stdout)
    for process in [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]:
        process.kill()
    killed = time.monotonic()
    printed, _ = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode != 0 and time.monotonic() - killed < 60
    assert f"machine 1 ({heartbeat.socket.gethostname()}) is lost" in printed, printed[-3000:]
