"""Launch commands of training and generation under each engine, on one machine or several; the GPUs of this process.

Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ext.settings import DEEPSPEED_ENGINES, Trainer
from robustmerge.stage.settings import UserError

PORT, PORTS = 29500, 1000  # where the machines of a run meet, unless MASTER_PORT says so: one of so many ports
MEETING_SECONDS = 900  # that a machine waits for the others to type the same command


def launch_command(
    trainer: Trainer, script: Path, job: Path, slot: int = 0, name: str = ""
) -> tuple[list[str], dict[str, str]]:
    """The command that runs `script job` under an engine, and the environment variables to add.

    One process is plain Python, on the GPU of its slot; several are started by torchrun, `--standalone` so that two
    runs on one machine do not meet. On several machines those meet that run the same `name`.
    Raises UserError if the environment does not say where they meet.
    """
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if trainer.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if not trainer.uses_deepspeed:  # with this set, accelerate would leave DeepSpeed out
            environment["ACCELERATE_USE_CPU"] = "true"
    if trainer.device == "cpu" or trainer.engine in DEEPSPEED_ENGINES:
        environment["DS_ACCELERATOR"] = trainer.device
    if trainer.engine == "single_gpu":
        environment["CUDA_VISIBLE_DEVICES"] = list_gpus()[slot]
    if trainer.engine in ("cpu", "single_gpu"):
        return [sys.executable, str(script), str(job)], environment
    place = ["--standalone"]
    if trainer.nodes > 1:
        meeting = find_meeting(trainer.nodes)
        place = [
            f"--nnodes={trainer.nodes}",
            f"--node_rank={meeting.rank}",
            f"--master_addr={meeting.address}",
            f"--master_port={meeting.port_of(name)}",
            f"--rdzv_id={name or 'run'}",
            f"--rdzv_conf=timeout={MEETING_SECONDS}",
            "--max_restarts=0",
        ]
    several = ["-m", "torch.distributed.run", *place, f"--nproc_per_node={trainer.processes}"]
    return [sys.executable, *several, str(script), str(job)], environment


@dataclass(frozen=True)
class Meeting:
    """Where the machines of a run meet. rank: of this one, 0 for the first; address: of the first."""

    rank: int
    address: str
    port: int

    def port_of(self, name: str) -> int:
        """The port of one training of a run: it may begin on one machine while the last one ends on another."""
        return self.port + zlib.crc32(name.encode()) % 16


def find_meeting(nodes: int) -> Meeting:
    """Read from the environment where the machines of a run meet: torchrun's variables, or SLURM's in their place.

    Raises UserError if it is not said.
    """
    given = os.environ
    rank = given.get("NODE_RANK", given.get("SLURM_NODEID", ""))
    if not rank.isdecimal() or int(rank) >= nodes:
        raise UserError(
            f"trainer.nodes={nodes} needs the number of this machine, 0 to {nodes - 1}, in NODE_RANK (under srun it is "
            f"SLURM_NODEID), got '{rank}'"
        )
    address = given.get("MASTER_ADDR") or _find_first_host(given.get("SLURM_JOB_NODELIST", ""))
    if not address:
        raise UserError(f"trainer.nodes={nodes} needs the name or address of the first machine in MASTER_ADDR")
    port = given.get("MASTER_PORT", str(PORT + int(given.get("SLURM_JOB_ID", "0")) % PORTS))
    if not port.isdecimal() or not 0 < int(port) < 2**16 - 16:
        raise UserError(f"MASTER_PORT must be a number from 1 to {2**16 - 17}, got '{port}'")
    return Meeting(int(rank), address, int(port))


def _find_first_host(hosts: str) -> str:
    """The first of the hosts that SLURM names as in `node[03-05,09]`; "" without SLURM."""
    if not hosts:
        return ""
    shown = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True)
    return shown.stdout.split("\n")[0]


def trainer_for_answers(trainer: Trainer, device: str | None = None) -> Trainer:
    """The trainer settings whose engine, device and processes generate answers; the answers do not depend on them.

    It has as many GPUs as `trainer` wants and the machine has. device: cpu or cuda to replace the trainer's.
    """
    device = device or trainer.device
    if device == "cpu":
        return replace(trainer, nodes=1) if trainer.device == "cpu" else Trainer()
    count = min(trainer.processes, len(list_gpus()))
    if count > 1:
        return Trainer("ddp", "cuda", count, trainer.precision)
    return Trainer("single_gpu", "cuda", precision=trainer.precision)


def count_parallel_runs(trainer: Trainer, jobs: int) -> int:
    """How many runs go side by side: `jobs` on CPU, at most one per GPU, one under an engine that uses all GPUs.

    Raises UserError if the engine needs more GPUs than there are.
    """
    if trainer.nodes > 1:
        find_meeting(trainer.nodes)
    if trainer.device == "cpu":
        return jobs if trainer.engine == "cpu" else 1
    gpus = len(list_gpus())
    if gpus < trainer.processes:
        raise UserError(
            f"trainer={trainer.engine} needs {trainer.processes} GPUs and this machine shows {gpus}; set "
            "trainer.processes, or run on CPU with trainer=cpu"
        )
    return min(jobs, gpus) if trainer.engine == "single_gpu" else 1


def list_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty without a driver."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [device for device in allowed.split(",") if device.strip() not in ("", "-1")]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(index) for index, line in enumerate(shown.splitlines()) if line.startswith("GPU ")]
