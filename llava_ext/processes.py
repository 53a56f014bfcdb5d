"""Running one stage in several torchrun processes: the first decides and writes, the others follow."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path

from torch.distributed import Store
from torch.distributed.rendezvous import rendezvous

from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.settings import UserError

FOREVER = timedelta(days=365)  # another run may hold the lock for any time
_stages = count()


class Team:
    """The processes that work on one stage together; without torchrun there is one.

    rank: of this process, 0 for the first; size: number of processes. key: prefix of the stage's keys in the store.
    """

    def __init__(self, key: str = ""):
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.key = key

    def begin(self) -> None:
        """Called by the first process: let the others begin the stage."""
        if self.size > 1:
            _store().set(self.key, "begin")

    def meet(self, problem: str = "") -> None:
        """In the first process: wait until all others have called this. In the others: report `problem` and return.

        Raises UserError in the first process for the first problem reported.
        """
        if self.rank:
            _store().set(f"{self.key} of {self.rank}", problem)
            return
        for other in range(1, self.size):
            key = f"{self.key} of {other}"
            _store().wait([key], FOREVER)
            if report := _store().get(key).decode():
                raise UserError(report)


def run_stage_together(
    address: Address, work: Callable[[Path, Team], dict | None], say: Callable[[str], None] = print
) -> Path:
    """Run a stage as `run_stage` does, under torchrun: all processes call this for the same stages in the same order.

    The first process alone checks for a complete result, waits for the lock and writes the manifest. It calls
    work(path, team) first; the others call it as soon as the first one calls `team.begin()`, and return at once if it
    never does, because the result is complete or because it failed.
    """
    team = Team(f"stage {next(_stages)}")
    if team.size == 1:
        return run_stage(address, lambda path: work(path, team), say)
    store = _store()
    if team.rank > 0:
        store.wait([team.key], FOREVER)
        if store.get(team.key) == b"begin":
            work(address.path, team)
        return address.path
    try:
        return run_stage(address, lambda path: work(path, team), say)
    finally:
        store.compare_set(team.key, "", "leave")  # "" stands for a key that was never set


@lru_cache(maxsize=1)
def _store() -> Store:
    """The key-value store of torchrun's processes; it needs no process group and no device."""
    store, _, _ = next(rendezvous("env://"))
    return store
