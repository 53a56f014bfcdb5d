"""Several processes of one training run: the first decides, the others follow."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path

from torch.distributed import Store
from torch.distributed.rendezvous import rendezvous

from robustmerge.runs import Address, run_stage

FOREVER = timedelta(days=365)  # as long as another run may hold the lock
_stages = count()


def run_stage_together(
    address: Address, work: Callable[[Path, Callable[[], None]], dict | None], say: Callable[[str], None] = print
) -> Path:
    """`run_stage` in every process that torchrun started; all call this for the same stages in the same order.

    The first process alone looks for the result, waits for the lock and writes the manifest. work(folder, begin): its
    first call is the first process's; the others make theirs when that one calls `begin`, and return at once if it
    never does, because the result is complete or because it failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run_stage(address, lambda folder: work(folder, _nothing), say)
    store, key = _store(), f"stage {next(_stages)}"
    if int(os.environ["RANK"]) > 0:
        store.wait([key], FOREVER)
        if store.get(key) == b"begin":
            work(address.path, _nothing)
        return address.path
    try:
        return run_stage(address, lambda folder: work(folder, lambda: store.set(key, "begin")), say)
    finally:
        store.compare_set(key, "", "leave")  # "" stands for a key that was never set


@lru_cache(maxsize=1)
def _store() -> Store:
    """The small store in which torchrun's processes meet; it needs no process group and no device."""
    store, _, _ = next(rendezvous("env://"))
    return store


def _nothing() -> None:
    pass
