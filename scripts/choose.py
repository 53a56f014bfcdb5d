"""Choose strengths on the val questions, and answer no other: `python scripts/choose.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages import choose, merge
    from pipeline.sweep import make_plans

    plans = make_plans(points)
    merge.check_experts(plans, multi_task=False)
    choose.check_choosing(plans)
    choose.choose(plans)
    choose.print_val_means(plans)


if __name__ == "__main__":
    run("choose", main)
