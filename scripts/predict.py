"""Answer the test questions of the chosen tasks with one source: `python scripts/predict.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from pipeline.closing import tell_made
    from pipeline.plan import make_plans
    from pipeline.stages import base, predict, prepare

    plans = make_plans(points)
    predict.check_devices(plans)
    predict.check_sources(plans)
    prepare.prepare(plans)
    base.build_base(plans)
    predict.predict(plans, predict.chosen_source)
    tell_made([address for plan in plans for address in predict.predictions_of(plan)])
    predict.tell_answers(plans)


if __name__ == "__main__":
    run("predict", walk)
