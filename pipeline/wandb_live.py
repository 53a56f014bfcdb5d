"""The losses of trainings at Weights & Biases as they come, each in the run that `wandb_log` completes at the end.

The process that starts the trainings reads what they write (losses.jsonl), in a thread: a training knows nothing of
W&B, and neither waits for the network nor ends with it. What is not there at the end, as after a kill or without a
network, `wandb_log` adds, under the same id.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from tqdm import tqdm

from llava_ext.settings import LOSSES
from pipeline.plan import Plan
from pipeline.wandb_log import begin_run, describe_run, end_service, is_wanted
from robustmerge.stage.address import UNFINISHED, Address, commit
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import one_line

EVERY = 10.0  # seconds between two looks at the losses
LONGEST_END = 90.0  # seconds that the program waits in the end for the network; what is cut off is added later


@contextmanager
def show_losses(trainings: Sequence[tuple[Address, Plan]], every: float = EVERY) -> Iterator[None]:
    """Context manager: what these trainings write is logged meanwhile, if it is wanted."""
    if not trainings or not is_wanted(trainings[0][1].config.logger):
        yield
        return
    followed, ended = [_Followed(address, plan) for address, plan in trainings], threading.Event()

    def follow() -> None:
        while not ended.wait(every):
            for one in followed:
                one.update()
        for one in followed:
            one.update()
            one.finish()
        if any(one.has_failed for one in followed):
            end_service()

    thread = threading.Thread(target=follow, name="wandb", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LONGEST_END)


class _Followed:
    """A training and its run, which begins with the first loss. A failure is a warning and ends it."""

    def __init__(self, address: Address, plan: Plan):
        self.address, self.plan = address, plan
        self.since, self.last = time.time(), 0
        self.run: Any = None  # of W&B
        self.is_over = self.has_failed = False

    def update(self) -> None:
        """Log the steps that are new; with the training its run ends."""
        if self.is_over:
            return
        is_complete = self.address.is_complete()
        try:
            steps = [step for step in self._read() if step["step"] > self.last]
            if steps and self.run is None and self._is_ours():
                self._begin()
            if self.run is not None:
                for values in steps:
                    self.last = values.pop("step")
                    if self.last >= self.run.starting_step:  # earlier steps were logged before an interruption
                        self.run.log(values, step=self.last)
        except Exception as error:
            self._warn(error)
        if is_complete:
            self.finish()

    def finish(self) -> None:
        """End the run, as failed where the training did not come to its end."""
        self.is_over, run, self.run = True, self.run, None
        if run is not None:
            try:
                run.finish(exit_code=0 if self.address.is_complete() else 1)
            except Exception as error:
                self._warn(error)

    def _begin(self) -> None:
        plan = self.plan
        self.run = begin_run(describe_run(plan, self.address, commit()), plan.config.logger, plan.root)
        if not self.run.offline:
            tqdm.write(f"  {self.address.short}: losses at {self.run.url}", file=sys.stdout)

    def _read(self) -> list[dict[str, Any]]:
        """The steps written since this program began; they are moved as the training ends."""
        for file in (self.address.path / UNFINISHED / LOSSES, self.address.path / LOSSES):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime >= self.since:
                    lines = file.read_text().splitlines(keepends=True)
                    return [json.loads(line) for line in lines if line.endswith("\n")]
        return []

    def _is_ours(self) -> bool:
        """Whether a process below this one holds the lock of the training; another program logs its own."""
        try:
            holder = read_json(self.address.lock, "the lock of a result")["pid"]
            return os.getpid() in {process.pid for process in psutil.Process(holder).parents()}
        except (UserError, psutil.Error, KeyError):
            return False

    def _warn(self, error: Exception) -> None:
        self.is_over = self.has_failed = True
        what = f"{type(error).__name__}: {one_line(str(error))}"
        tqdm.write(f"  warning: {self.address.short} is not shown at W&B while it trains: {what}", file=sys.stdout)
