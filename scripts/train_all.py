"""Prepare, train the experts and the multi-task model: `bash scripts/train_all.sh`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages import base, prepare, train
    from pipeline.sweep import make_plans
    from pipeline.wandb_log import log_results

    started = time.monotonic()
    plans = make_plans(points)
    if any(plan.config.plan for plan in plans):
        train.show_plans(plans)
        return
    train.check_training(plans)
    prepare.prepare(plans)
    base.make_bases(plans)
    train.train(plans)
    train.print_trained(plans, started)
    if train.is_first_machine(plans):
        log_results(plans)


if __name__ == "__main__":
    run("train_all", main)
