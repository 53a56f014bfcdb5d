"""Score the answers of one source: `python scripts/score.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import answers, steps, summary

    partial = [point.pop("partial") for point in points]
    lines = steps.plan(points)
    if any(partial):
        summary.tell_partial(answers.score_partly(lines))
        return
    answers.score(lines, answers.chosen_source)
    summary.tell_scores(lines)


if __name__ == "__main__":
    run("score", walk)
