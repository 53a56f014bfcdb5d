"""Merge, predict, score and report: `bash scripts/merge_eval.sh`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from pipeline.plan import make_plans
    from pipeline.stages import base, choose, merge, predict, prepare, report, score

    started = time.monotonic()
    plans = make_plans(points)
    merge.check_experts(plans)
    merge.merge(plans)
    predict.check_devices(plans)
    prepare.prepare(plans)
    base.build_base(plans)
    merge.merge(plans, choose=True)
    choose.choose_strengths(plans)
    choose.tell_choices(plans)
    predict.predict(plans, lambda plan: plan.sources)
    score.score(plans, lambda plan: plan.sources)
    score.score_otherwise(plans, lambda plan: plan.sources)
    report.tell_report(plans, report.report(plans), started)


if __name__ == "__main__":
    run("merge_eval", walk)
