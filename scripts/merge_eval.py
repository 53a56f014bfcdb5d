"""Merge, predict, score and report: `bash scripts/merge_eval.sh`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import answers, reporting, steps, summary

    started = time.monotonic()
    lines = steps.plan(points)
    steps.check_experts(lines)
    steps.merge(lines)
    answers.check_devices(lines)
    steps.prepare(lines)
    steps.build_base(lines)
    steps.merge(lines, choose=True)
    answers.choose_strengths(lines)
    summary.tell_choices(lines)
    answers.predict(lines, lambda line: line.sources)
    answers.score(lines, lambda line: line.sources)
    answers.score_otherwise(lines, lambda line: line.sources)
    summary.tell_report(lines, reporting.report(lines), started)


if __name__ == "__main__":
    run("merge_eval", walk)
