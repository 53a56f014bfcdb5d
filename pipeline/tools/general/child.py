"""Run lmms-eval as a job file says, in its own environment. Started by run_lmms.py, never typed.

    path/to/lmms-eval/environment/bin/python pipeline/tools/general/child.py JOB.json

The process ends by itself when the one that started it has ended. What is imported of ours needs nothing but tqdm.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def main(job: Path) -> None:
    """Become `python -m lmms_eval` with the arguments of the one item."""
    sys.path.insert(0, str(REPOSITORY))
    import tqdm

    from pipeline.events import report_progress
    from robustmerge.stage.process import end_with_process
    from robustmerge.stage.progress import Bar

    described = json.loads(job.read_text())
    end_with_process(described["parent"]["pid"], described["parent"]["start"])
    Bar.report = report_progress
    vars(tqdm)["tqdm"] = Bar  # lmms-eval's bars move the bar of the program that started this
    if token := os.environ.pop("HF_TOKEN", None):  # lmms-eval would write it into its log and its results
        os.environ["HUGGING_FACE_HUB_TOKEN"] = token
    ours = (REPOSITORY, Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if Path(place).resolve() not in ours]
    (item,) = described["items"]
    sys.argv = ["lmms_eval", *item["arguments"]]
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
