"""What a fresh process costs: CPU and wall seconds, and how much memory of its own it held at most."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SECONDS_BETWEEN_SAMPLES = 0.005


@dataclass(frozen=True)
class Cost:
    """cpu: seconds, user and system, of the process with its threads, from when its imports were done to its end.

    wall: seconds, likewise. private: MB, RssAnon of the whole process. answer: what the work printed.
    """

    cpu: float
    wall: float
    private: float
    answer: dict[str, Any]


def measure(work: dict[str, Any]) -> Cost:
    """Run one piece of work (see merging_child.py) in a fresh process. Raises UserError with its words if it fails."""
    with tempfile.TemporaryFile("w+") as said:
        environment = {**os.environ, **ONE_THREAD}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tools.bench.merging_child", json.dumps(work)],
            cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=said, text=True,
        )  # fmt: skip
        peak = _Peak(process.pid)
        peak.start()
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        ended = time.time()
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        peak.join()
        said.seek(0)
        if process.returncode != 0:
            lines = said.read().strip().splitlines() or [f"it ended with status {process.returncode}"]
            raise UserError(lines[-1])
    told = json.loads(printed.splitlines()[-1])
    cpu = used.ru_utime + used.ru_stime - told["imported"]["cpu"]
    return Cost(cpu, ended - told["imported"]["time"], peak.megabytes, told["answer"])


class _Peak(threading.Thread):
    """The largest RssAnon of a process: pages of its own, without the files it has mapped."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.status, self.megabytes = Path(f"/proc/{pid}/status"), 0.0

    def run(self) -> None:
        while (now := self._now()) is not None:
            self.megabytes = max(self.megabytes, now)
            time.sleep(SECONDS_BETWEEN_SAMPLES)

    def _now(self) -> float | None:
        """None as soon as the process has ended, or where there is no /proc."""
        try:
            lines = self.status.read_text().splitlines()
        except OSError:
            return None
        found = [line for line in lines if line.startswith("RssAnon")]
        return int(found[0].split()[1]) / 1024 if found else None


def median(costs: list[Cost]) -> Cost:
    """Median seconds, largest memory."""
    return Cost(
        statistics.median(cost.cpu for cost in costs),
        statistics.median(cost.wall for cost in costs),
        max(cost.private for cost in costs),
        costs[-1].answer,
    )


def warm(folders: list[Path]) -> None:
    """Read files once, so that they are in the page cache."""
    for folder in folders:
        for file in folder.iterdir():
            with open(file, "rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass
