"""Train the experts of the chosen tasks, and what they need before: `python scripts/train.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run  # noqa: E402
from scripts.train_all import main  # noqa: E402

if __name__ == "__main__":
    run("train", main)
