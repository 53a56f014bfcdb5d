"""Measure fresh processes: CPU and wall seconds, and the peak of their private memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SECONDS_BETWEEN_SAMPLES = 0.005


@dataclass(frozen=True)
class Cost:
    """The cost of one process, without loading its libraries.

    cpu: seconds, user and system, with its threads; wall: seconds. private: MB, RssAnon of the whole process.
    answer: what the work returned.
    """

    cpu: float
    wall: float
    private: float
    answer: dict[str, Any]


def run_together(work: str, inputs: Sequence[dict[str, Any]]) -> list[Cost]:
    """Do one kind of work on several inputs side by side, a fresh process of one thread each; all begin together.

    work: a function, as `module:function`. Raises UserError with the last words of a process that fails.
    """
    with contextlib.ExitStack() as stack:
        children = [_Child(work, values, stack.enter_context(tempfile.TemporaryFile("w+"))) for values in inputs]
        imported = [child.output.readline() for child in children]
        begun = time.perf_counter()
        for child in children:
            child.input.close()  # what each waits for
        for child in children:
            child.wait()
        return [child.cost(begun, cpu) for child, cpu in zip(children, imported, strict=True)]


class _Child:
    """One process. errors: a file for its messages, as a pipe that nobody reads would stop it."""

    def __init__(self, work: str, values: dict[str, Any], errors: IO[str]):
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tools.bench.child", work, json.dumps(values)],
            cwd=REPOSITORY, env={**os.environ, **ONE_THREAD}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout  # both are pipes
        self.input, self.output = self.process.stdin, self.process.stdout
        self.peak = _Peak(self.process.pid)
        self.peak.start()

    def wait(self) -> None:
        self.printed = self.output.read()
        self.output.close()
        _, status, self.usage = os.wait4(self.process.pid, 0)
        self.ended = time.perf_counter()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak.join()

    def cost(self, begun: float, imported: str) -> Cost:
        """What it took from `begun` on. imported: its CPU seconds until then, as it printed them."""
        if self.process.returncode != 0:
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines()
            raise UserError(lines[-1] if lines else f"a process ended with status {self.process.returncode}")
        cpu = self.usage.ru_utime + self.usage.ru_stime - json.loads(imported)
        return Cost(cpu, self.ended - begun, self.peak.megabytes, json.loads(self.printed.splitlines()[-1]))


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
        sizes = [line.split()[1] for line in lines if line.startswith("RssAnon")]
        return int(sizes[0]) / 1024 if sizes else None


def read_once(folders: Sequence[Path]) -> None:
    """Read every file, so that all are in the page cache."""
    for folder in folders:
        for file in folder.iterdir():
            with open(file, "rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass
