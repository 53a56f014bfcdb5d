"""Compare any two sources: `python scripts/compare.py 'sources=[merged/robustmerge,merged/ties]'`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.compare import compare

    compare(points)


if __name__ == "__main__":
    run("compare", main)
