"""How fast experts are trained: our training beside the plainest loop of peft and transformers, on the same rows.

python scripts/bench_train.py                         LLaVA-1.5-7B with random weights on a GPU: about 10 minutes
python scripts/bench_train.py --small                 the same code on a tiny model and the CPU: within a minute

Rows and tokens a second, MFU and peak memory, with and without gradient checkpointing, and ZeRO-3 with and without
offload. The table is printed, and that of a GPU is saved as table.md and table.json in results/bench_train.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run_guarded  # noqa: E402
from pipeline.tools.bench.training import main  # noqa: E402

if __name__ == "__main__":
    run_guarded(lambda: main(__doc__), "python scripts/bench_train.py")
