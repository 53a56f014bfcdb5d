"""Start processes quickly, identify them by number and start time, and end a child together with its parent."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import the large libraries without garbage collection: they make a million objects that stay.

    A process that trains or answers starts an eighth sooner.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def process_start(pid: int) -> str | None:
    """The start time of a process as the system reports it, which tells reused pids apart; None if it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, start = shown.stdout.strip().partition(" ")
    return start.strip() if state and not state.startswith("Z") else None


def end_with_process(pid: int, start: str, poll: float = 0.5) -> None:
    """End this process as soon as process `pid` (started at `start`) has ended, for whatever reason."""

    def watch() -> None:
        while process_start(pid) == start:
            time.sleep(poll)
        os._exit(143)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def count_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
