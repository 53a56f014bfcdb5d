"""General benchmarks by lmms-eval: `python scripts/general.py source=merged/robustmerge`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.general.command import run_general

    run_general(points)


if __name__ == "__main__":
    run("general", main)
