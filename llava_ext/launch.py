"""Launch commands of training and generation under each engine, and the GPUs that this process may use.

Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llava_ext.settings import DEEPSPEED_ENGINES, Trainer
from robustmerge.stage.settings import UserError


def launch_command(trainer: Trainer, script: Path, job: Path, slot: int = 0) -> tuple[list[str], dict[str, str]]:
    """The command that runs `script job` under an engine, and the environment variables to add.

    One process is plain Python, on the GPU of its slot; several are started by torchrun, `--standalone` so that two
    runs on one machine do not meet.
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
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={trainer.processes}"]
    return [sys.executable, *several, str(script), str(job)], environment


def trainer_for_answers(trainer: Trainer, device: str | None = None) -> Trainer:
    """The trainer settings whose engine, device and processes generate answers; the answers do not depend on them.

    It has as many GPUs as `trainer` wants and the machine has. device: cpu or cuda to replace the trainer's.
    """
    device = device or trainer.device
    if device == "cpu":
        return trainer if trainer.device == "cpu" else Trainer()
    count = min(trainer.processes, len(list_gpus()))
    if count > 1:
        return Trainer("ddp", "cuda", count, trainer.precision)
    return Trainer("single_gpu", "cuda", precision=trainer.precision)


def count_parallel_runs(trainer: Trainer, jobs: int) -> int:
    """How many runs go side by side: `jobs` on CPU, at most one per GPU, one under an engine that uses all GPUs.

    Raises UserError if the engine needs more GPUs than there are.
    """
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
