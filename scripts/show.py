"""Write and open a page of questions with every source's answer: `python scripts/show.py`, after merge_eval.sh."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.show.command import show

    show(points)


if __name__ == "__main__":
    run("show", main)
