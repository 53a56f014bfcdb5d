"""How fast answers are made: in batches, with one load of the base for all sources, by several processes.

python scripts/bench_eval.py                          on the tiny model of runs/mini-tiny, if there is one, otherwise on
                                                      random weights of its shape: 5 minutes on two cores
python scripts/bench_eval.py --run FOLDER             on the base and the merged models of another finished run
python scripts/bench_eval.py --gpu                    LLaVA-1.5-7B with random weights on a GPU: within 5 minutes
python scripts/bench_eval.py --gpu --gpu-shape tiny --device cpu --dtype fp32
                                                      the same code on a tiny model, anywhere: within a minute

The table is printed and saved as table.md and table.json in results/bench_eval (of a GPU: results/bench_eval/gpu).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.program import run_guarded  # noqa: E402
from pipeline.tools.bench.answering import main  # noqa: E402

if __name__ == "__main__":
    run_guarded(lambda: main(__doc__), "python scripts/bench_eval.py")
