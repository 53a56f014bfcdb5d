"""A map over several processes whose results do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from robustmerge.stage.process import end_with_process, process_start
from robustmerge.stage.progress import Bar

J = TypeVar("J")
R = TypeVar("R")
AHEAD = 4  # jobs a process that wait, so that none is idle and no long list of jobs is in memory


def _initialise_worker(parent: int, parent_start: str) -> None:
    """Leave Ctrl-C to the parent process, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_process(parent, parent_start)


def map_in_order(work: Callable[[J], R], jobs: Iterable[J], processes: int) -> Iterator[R]:
    """Results of `work` for every job, in order; `work` must be a module-level function of its argument alone."""
    if processes == 1:
        yield from map(work, jobs)
        return
    parent = os.getpid()
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialise_worker,
        initargs=(parent, process_start(parent) or ""),
    )
    with pool:
        running: deque[Future[R]] = deque()
        for job in jobs:
            running.append(pool.submit(work, job))
            if len(running) > AHEAD * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def with_progress_bar(items: Iterable[J] | None, title: str, total: int, unit: str = "image") -> Bar:
    """The items with a progress bar if they take more than two seconds; the bar alone without items."""
    return Bar(
        items,
        desc=title,
        total=total,
        unit=unit,
        delay=2,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
        leave=False,
    )
