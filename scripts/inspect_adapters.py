"""What to know about experts before merging them: `python scripts/inspect_adapters.py 'experts=[a,b]' merged=c`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.program import run  # noqa: E402


def walk(points: list[dict]) -> None:
    from scripts import inspection

    for point in points:
        inspection.inspect(point)


if __name__ == "__main__":
    run("inspect_adapters", walk)
