"""LLaVA's own adapters and ours, both ways: `python scripts/convert.py to=peft 'adapters=[name:folder]' out=FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402


def main(points: list[dict]) -> None:
    from pipeline.tools.convert import convert

    convert(points)


if __name__ == "__main__":
    run("convert", main)
