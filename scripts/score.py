"""Score the answers of one source: `python scripts/score.py source=...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from pipeline.plan import make_plans
    from pipeline.stages.predict import chosen_source
    from pipeline.stages.score import score, score_partly, tell_partial, tell_scores

    partial = [point.pop("partial") for point in points]
    plans = make_plans(points)
    if any(partial):
        tell_partial(score_partly(plans))
        return
    score(plans, chosen_source)
    tell_scores(plans)


if __name__ == "__main__":
    run("score", walk)
