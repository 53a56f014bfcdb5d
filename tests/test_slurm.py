"""The job file of SLURM, against commands of SLURM that are written here: what it starts, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from robustmerge.stage.address import REPOSITORY

FILE = REPOSITORY / "scripts" / "slurm" / "train_all.sbatch"
OPTIONS = dict(
    line[len("#SBATCH --") :].partition("=")[::2] for line in FILE.read_text().split("\n") if "#SBATCH" in line
)
SRUN = """#!/bin/sh
echo "$@" > "$LOG/srun.words"
trap 'echo TERM > "$LOG/ended"; exit 130' TERM
while [ -n "$HANGS" ]; do sleep 0.05; done
exit ${STATUS:-0}
"""


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job on two nodes of four GPUs. LOG: where its commands write down their words."""
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/sh\necho "$@" > "$LOG/scontrol.words"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "8",
        "LOG": str(tmp_path),
    }
    return {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def submit(cluster: dict[str, str], *words: str, **more: str) -> subprocess.Popen:
    """Run the file as sbatch does: a copy of it, in the folder where it was submitted."""
    copy = Path(cluster["LOG"]) / "slurm_script"
    copy.write_text(FILE.read_text())
    return subprocess.Popen(["bash", str(copy), *words], cwd=REPOSITORY, env={**cluster, **more})


def test_every_node_gets_the_command_once_with_the_words_that_were_typed(cluster, tmp_path):
    assert submit(cluster, "model=llava15_7b", "tasks=[vqav2,rec]").wait(10) == 0
    started = (tmp_path / "srun.words").read_text().split()
    typed = ["model=llava15_7b", "tasks=[vqav2,rec]"]
    assert started[started.index("bash") :] == [
        "bash",
        "scripts/train_all.sh",
        "trainer.nodes=2",
        "trainer.processes=4",
        *typed,
    ]
    assert OPTIONS["ntasks-per-node"] == "1"
    assert not (tmp_path / "scontrol.words").exists()


def test_before_the_time_limit_the_job_stops_and_queues_itself_again(cluster, tmp_path):
    name, _, seconds = OPTIONS["signal"].removeprefix("B:").partition("@")
    assert int(seconds) >= 60 and "requeue" in OPTIONS and OPTIONS["open-mode"] == "append"
    job = submit(cluster, HANGS="yes")
    while not (tmp_path / "srun.words").exists():
        time.sleep(0.01)
    job.send_signal(signal.Signals[f"SIG{name}"])
    assert job.wait(10) == 0
    assert (tmp_path / "ended").read_text() == "TERM\n"
    assert (tmp_path / "scontrol.words").read_text() == "requeue 12\n"


def test_a_mistake_ends_the_job(cluster, tmp_path):
    assert submit(cluster, STATUS="2").wait(10) == 2
    assert not (tmp_path / "scontrol.words").exists()
