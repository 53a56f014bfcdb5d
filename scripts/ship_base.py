"""Train a small base and write it as it is shipped: `python scripts/ship_base.py model.base.train=true out=FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.sweep import make_plans
    from pipeline.tools.ship_base import ship

    for folder in ship(make_plans(points)):
        print(f"shipped: {folder} (its README.md is the card)")


if __name__ == "__main__":
    run("ship_base", main)
