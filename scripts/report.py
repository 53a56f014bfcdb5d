"""Write the report again from the scores that exist: `python scripts/report.py`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import answers, reporting, steps, summary

    started = time.monotonic()
    lines = steps.plan(points)
    answers.score(lines, lambda line: line.sources)
    answers.score_otherwise(lines, lambda line: line.sources)
    summary.tell_report(lines, reporting.report(lines), started)


if __name__ == "__main__":
    run("report", walk)
