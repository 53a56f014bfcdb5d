"""Measure what correlates with the ranking of the merge methods: `python scripts/findings.py`, after merge_eval.sh."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.sweep import make_plans
    from pipeline.tools.findings.page import write

    for page in write(make_plans(points)):
        print(f"findings: {page} (tables and figures in findings, beside it)")


if __name__ == "__main__":
    run("findings", main)
