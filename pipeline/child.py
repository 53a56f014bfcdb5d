"""The program of a child process: does the items of a job file. Started by pipeline/jobs.py, never by hand.

    python pipeline/child.py JOB.json        (under torchrun for more than one process)

The process ends by itself when the one that started it has ended. A stage imports the heavy libraries inside its
`work_...`, so that a process loads only what it needs.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.events import Event, report_error, report_progress, write_event  # noqa: E402
from pipeline.stages.base import work_align, work_base, work_clip_base, work_corpus, work_join, work_pretrain  # noqa: E402
from pipeline.stages.convert import work_convert  # noqa: E402
from pipeline.stages.merge import work_merge  # noqa: E402
from pipeline.stages.predict import work_predict  # noqa: E402
from pipeline.stages.prepare import work_prepare  # noqa: E402
from pipeline.stages.score import work_score  # noqa: E402
from pipeline.stages.train import work_train  # noqa: E402
from robustmerge.stage.failures import run_guarded  # noqa: E402
from robustmerge.stage.process import end_with_process  # noqa: E402
from robustmerge.stage.progress import Bar  # noqa: E402
from robustmerge.stage.settings import UserError  # noqa: E402

if TYPE_CHECKING:
    from llava_ext.heartbeat import Heartbeat

WORK = {
    "prepare": work_prepare,
    "corpus": work_corpus,
    "captions": work_corpus,
    "pretrain": work_pretrain,
    "base": work_base,
    "align": work_align,
    "join": work_join,
    "clip_base": work_clip_base,
    "train": work_train,
    "convert": work_convert,
    "merge": work_merge,
    "predict": work_predict,
    "score": work_score,
}


def main(job: Path) -> None:
    """Run the items of the job file; one that is refused does not stop those after it.

    Raises UserError with all refusals at the end.
    """
    description = json.loads(job.read_text())
    items = description["items"]
    end_with_process(description["parent"]["pid"], description["parent"]["start"])
    refused = []
    for number, item in enumerate(items, start=1):
        write_event(Event("item", item["name"], number=number))
        try:
            WORK[item["stage"]](item)
        except UserError as error:
            refused.append(f"{item['name']}: {error}" if len(items) > 1 else str(error))
    if refused:
        raise UserError("\n".join(refused))


def begin_heartbeat() -> Heartbeat | None:
    """Begin the signs of life of this machine, if others work on the same job."""
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return None
    from llava_ext.heartbeat import Heartbeat

    return Heartbeat(report_error).begin()


def run_and_exit(action: Callable[[], None]) -> None:
    """Run `action` and end the process at once with its status, everything flushed.

    Python's usual end is left out: threads of the libraries (gloo's, for one) may abort a process that is being torn
    down, and torchrun would then end the other processes while they still write.
    """
    status, heartbeat = 0, begin_heartbeat()
    try:
        action()
        if heartbeat:
            heartbeat.end()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
        if heartbeat:
            heartbeat.fail()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    Bar.report = report_progress
    run_and_exit(lambda: run_guarded(lambda: main(Path(sys.argv[1])), "the one that was interrupted", report_error))
