"""Show what prepared data holds, and whether it is as many rows as expected: `python scripts/verify.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.sweep import make_plans
    from pipeline.tools.verify import verify

    for plan in make_plans(points):
        verify(plan)


if __name__ == "__main__":
    run("verify", main)
