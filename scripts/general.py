"""General benchmarks by lmms-eval: `python scripts/general.py source=merged/robustmerge`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import general_line

    general_line.ask_general(points)


if __name__ == "__main__":
    run("general", walk)
