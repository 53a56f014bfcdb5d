"""Write the report again from the scores that exist: `python scripts/report.py`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages import report, score
    from pipeline.sweep import make_plans
    from pipeline.wandb_log import log_results

    started = time.monotonic()
    plans = make_plans(points)
    evaluations = [one for plan in plans for one in plan.evaluations]
    score.score(evaluations)
    score.score_with_other_protocol(evaluations)
    reports = report.report(plans)
    report.print_reports(reports, started)
    log_results(plans, reports)


if __name__ == "__main__":
    run("report", main)
