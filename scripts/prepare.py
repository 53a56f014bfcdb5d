"""Draw or read the data of the chosen tasks: `bash scripts/prepare.sh`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.stages.prepare import prepare
    from pipeline.sweep import make_plans
    from pipeline.terminal import print_results
    from pipeline.tools.fetch import fetch, wants_fetch

    is_wanted = [wants_fetch(point) for point in points]
    plans = make_plans(points)
    for plan, wanted in zip(plans, is_wanted, strict=True):
        if wanted:
            fetch(plan)
    prepare(plans)
    print_results([plan.data(task) for plan in plans for task in plan.config.tasks])


if __name__ == "__main__":
    run("prepare", main)
