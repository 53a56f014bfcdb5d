"""Score the answers of one source: `python scripts/score.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages.score import print_partial_scores, print_scores, score
    from pipeline.sweep import make_plans

    partial = [point.pop("partial") for point in points]
    plans = make_plans(points)
    evaluations = [one for plan in plans for one in plan.selected_evaluations]
    if any(partial):
        print_partial_scores(evaluations)
        return
    score(evaluations)
    print_scores(evaluations)


if __name__ == "__main__":
    run("score", main)
