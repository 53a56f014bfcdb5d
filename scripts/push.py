"""Upload an adapter with its card: `python scripts/push.py source=merged/robustmerge repo=user/name`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.push import push

    for point in points:
        push(point)


if __name__ == "__main__":
    run("push", main)
