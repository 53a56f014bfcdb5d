"""Threads that merge modules side by side; the bytes are the same for any number of them."""

from __future__ import annotations

import ctypes
import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from robustmerge.device import computing_on

T = TypeVar("T")
R = TypeVar("R")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@contextmanager
def set_up_for_merging(device: str = "cpu") -> Iterator[None]:
    """Context manager: one torch thread, so that sums do not depend on the number of cores; no garbage collection.

    A merge creates no reference cycles, so the garbage collector, which would walk over all of torch, is switched off.
    Raises UserError if the device is not there.
    """
    keep_freed_memory()
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        with computing_on(device):
            yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def map_in_threads(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield function(item) for each item, in order, by several threads; only a few results wait to be taken."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@cache
def keep_freed_memory() -> None:
    """Let glibc keep some freed memory for the next tensors: fetching it again costs more than most rules."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, 256 << 20)
