"""List what exists, and remove what no report uses.

python scripts/runs.py                  every result: address, what differs from the defaults, score, size, commit
python scripts/runs.py --kind merged    of one kind: data, base, experts, merged, predictions, scores, general
python scripts/runs.py --clean          remove what no report uses (shows it and asks first; --yes does not ask)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run_guarded  # noqa: E402
from pipeline.tools.runs import main  # noqa: E402

if __name__ == "__main__":
    run_guarded(lambda: main(__doc__), "python scripts/runs.py")
