"""Prepare, train the base, the experts and the multi-task model: `bash scripts/train_all.sh`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import steps, summary

    started = time.monotonic()
    lines = steps.plan(points)
    steps.check_trainer(lines)
    steps.prepare(lines)
    steps.build_base(lines)
    steps.train(lines)
    summary.tell_training(lines, started)


if __name__ == "__main__":
    run("train_all", walk)
