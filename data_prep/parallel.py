"""Drawing in several processes, with results that do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from robustmerge.runs import end_with_process, process_start

J = TypeVar("J")
R = TypeVar("R")


def map_in_order(work: Callable[[J], R], jobs: Iterable[J], processes: int) -> Iterator[R]:
    """`work` of every job, in the order of the jobs; `work` must be a module's function of its argument alone."""
    if processes == 1:
        yield from map(work, jobs)
        return
    parent = os.getpid()
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_process,  # a killed parent leaves no drawing process behind
        initargs=(parent, process_start(parent)),
    )
    with pool:
        yield from pool.map(work, jobs)
