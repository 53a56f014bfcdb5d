"""Inspect experts before merging them: `python scripts/inspect_adapters.py 'experts=[a,b]' merged=c`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.inspect import inspect

    for point in points:
        inspect(point)


if __name__ == "__main__":
    run("inspect_adapters", main)
