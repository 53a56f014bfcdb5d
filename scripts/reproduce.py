"""Make what a laptop can of the paper: `bash scripts/reproduce.sh`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.reproduce import reproduce

    reproduce(points)


if __name__ == "__main__":
    run("reproduce", main)
