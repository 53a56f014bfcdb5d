"""Several processes of one stage: the first decides, the others follow."""

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

FOREVER = timedelta(days=365)  # as long as another run may hold the lock
_stages = count()


class Team:
    """The processes that torchrun started, at one stage; one process alone is a team of one.

    rank: of this process, 0 for the first; size: how many there are.
    """

    def __init__(self, key: str = ""):
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.key = key

    def begin(self) -> None:
        """The first process lets the others begin with the stage."""
        if self.size > 1:
            _store().set(self.key, "begin")

    def meet(self, problem: str = "") -> None:
        """The first process waits until each of the others has come here; they tell their problem and go on.

        Raises UserError in the first process for the first problem that another one has.
        """
        if self.rank:
            _store().set(f"{self.key} of {self.rank}", problem)
            return
        for other in range(1, self.size):
            key = f"{self.key} of {other}"
            _store().wait([key], FOREVER)
            if told := _store().get(key).decode():
                raise UserError(told)


def run_stage_together(
    address: Address, work: Callable[[Path, Team], dict | None], say: Callable[[str], None] = print
) -> Path:
    """`run_stage` in every process that torchrun started; all call this for the same stages in the same order.

    The first process alone looks for the result, waits for the lock and writes the manifest. work(path, team): the
    first call is the first process's; the others make theirs when that one calls `team.begin()`, and return at once
    if it never does, because the result is complete or because it failed.
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
    """The small store in which torchrun's processes meet; it needs no process group and no device."""
    store, _, _ = next(rendezvous("env://"))
    return store
