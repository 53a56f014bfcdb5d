"""How a training process is started for each engine. Standard library only."""

from __future__ import annotations

import sys
from pathlib import Path

from llava_ext.settings import DEEPSPEED_ENGINES, Trainer


def launch_command(trainer: Trainer, script: Path, job: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments, and what to add to the environment, that run `script job` under an engine.

    One process is plain Python; several are torchrun's, `--standalone` so that two runs on one machine do not meet.
    """
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if trainer.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if trainer.device == "cpu" or trainer.engine in DEEPSPEED_ENGINES:
        environment["DS_ACCELERATOR"] = trainer.device
    if trainer.engine in ("cpu", "single_gpu"):
        return [sys.executable, str(script), str(job)], environment
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={trainer.processes}"]
    return [sys.executable, *several, str(script), str(job)], environment
