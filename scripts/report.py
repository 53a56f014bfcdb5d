"""Write the report again from the scores that exist: `python scripts/report.py`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from pipeline.plan import make_plans
    from pipeline.stages.report import report, tell_report
    from pipeline.stages.score import score, score_otherwise

    started = time.monotonic()
    plans = make_plans(points)
    score(plans, lambda plan: plan.sources)
    score_otherwise(plans, lambda plan: plan.sources)
    tell_report(plans, report(plans), started)


if __name__ == "__main__":
    run("report", walk)
