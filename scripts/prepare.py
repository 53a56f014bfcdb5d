"""Draw or read the data of the chosen tasks: `python scripts/prepare.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import steps, summary

    lines = steps.plan(points)
    steps.prepare(lines)
    summary.tell_made([line.data(task) for line in lines for task in line.config.tasks])


if __name__ == "__main__":
    run("prepare", walk)
