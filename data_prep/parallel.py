"""Drawing in several processes, with results that do not depend on their number."""

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


def _begin(parent: int, start: str) -> None:
    """In a drawing process: Ctrl-C is the parent's to answer, and a killed parent leaves nothing behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_process(parent, start)


def map_in_order(work: Callable[[J], R], jobs: Iterable[J], processes: int) -> Iterator[R]:
    """`work` of every job, in the order of the jobs; `work` must be a module's function of its argument alone."""
    if processes == 1:
        yield from map(work, jobs)
        return
    parent = os.getpid()
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(parent, process_start(parent)),
    )
    with pool:
        yield from pool.map(work, jobs)
