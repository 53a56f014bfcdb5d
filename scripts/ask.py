"""Talk to a source: `python scripts/ask.py source=merged/robustmerge image=x.jpg 'question=What is this?'`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.ask import ask

    for point in points:
        ask(point)


if __name__ == "__main__":
    run("ask", main)
