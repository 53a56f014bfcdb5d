"""Do the work that a job file names, one item after the other. Started by scripts/jobs.py, never typed.

    python scripts/child.py JOB.json        (under torchrun for more than one process)

The process ends by itself when the one that started the line has ended.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robustmerge.runs import end_with_process  # noqa: E402
from robustmerge.settings import UserError  # noqa: E402
from scripts.guard import guarded  # noqa: E402
from scripts.work import WORK  # noqa: E402


def main(job: Path) -> None:
    """Run the items of the job file; one that is refused does not stop those after it.

    Raises UserError with all refusals at the end.
    """
    described = json.loads(job.read_text())
    end_with_process(described["parent"]["pid"], described["parent"]["start"])
    refused = []
    for number, item in enumerate(described["items"], start=1):
        print(f"[{number}/{len(described['items'])}] {item['name']}", flush=True)
        try:
            WORK[item["stage"]](item)
        except UserError as error:
            refused.append(f"{item['name']}: {error}" if len(described["items"]) > 1 else str(error))
    if refused:
        raise UserError("\n".join(refused))


if __name__ == "__main__":
    guarded(lambda: main(Path(sys.argv[1])), "the one that was interrupted", mark_lines=True)
