"""What merging costs: CPU seconds, wall seconds and memory of every method, on experts of the shape of LLaVA-1.5-7B.

python scripts/bench_merge.py                       all rows; about 20 minutes, 1 GB of disk
python scripts/bench_merge.py --small               two layers instead of 32, ten rows, one run each: within a minute,
                                                    saved in runs/bench/small
python scripts/bench_merge.py --rows ties knots     rows whose names begin so; the others keep their numbers
python scripts/bench_merge.py --delta               also the dense updates of the whole model: long, 26 GB of disk

The table is printed and saved as results/bench_merge/table.md and table.json. Experts are drawn once, into runs/bench.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run_guarded  # noqa: E402
from pipeline.tools.bench.merging import main  # noqa: E402

if __name__ == "__main__":
    run_guarded(lambda: main(__doc__), "python scripts/bench_merge.py")
