"""Answer the test questions of the chosen tasks with one source: `python scripts/predict.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages import base, predict, prepare
    from pipeline.sweep import make_plans
    from pipeline.terminal import print_results

    plans = make_plans(points)
    predict.check_devices(plans)
    predict.check_sources(plans)
    prepare.prepare(plans)
    base.make_bases(plans)
    evaluations = [one for plan in plans for one in plan.selected_evaluations]
    predict.predict(evaluations)
    print_results([one.predictions for one in evaluations])
    predict.print_answers(evaluations)


if __name__ == "__main__":
    run("predict", main)
