"""A map over several processes whose results do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from robustmerge.stage.process import end_with_process, process_start

J = TypeVar("J")
R = TypeVar("R")


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
        yield from pool.map(work, jobs)
