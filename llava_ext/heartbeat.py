"""Machines of one run tell each other that they live, so that the run ends everywhere when one of them is lost.

On one machine torchrun ends all processes with the first that fails. Over several, those of the others wait in a
collective operation for the library's time limit, half an hour, and no library says which machine it is.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

BEAT, SILENCE = 2.0, 20.0  # seconds between signs of life, and without one until a machine counts as lost
START = timedelta(minutes=10)  # in which all machines load their libraries
DONE, FAILED = "done", "failed"


@dataclass
class Machine:
    """One of the machines of a run: what it said last (its host's name, and a count or how it ended), and when."""

    number: int
    said: str = ""
    since: float = field(default_factory=time.monotonic)

    def hear(self, said: str) -> None:
        if said != self.said:
            self.said, self.since = said, time.monotonic()

    @property
    def is_lost(self) -> bool:
        """Whether it is silent for too long; twice that if it has failed, as another's loss may be the reason."""
        patience = SILENCE * (2 if self.said.endswith(f" {FAILED}") else 1)
        return not self.said.endswith(f" {DONE}") and time.monotonic() - self.since > patience

    def __str__(self) -> str:
        host = self.said.rpartition(" ")[0] or (os.environ["MASTER_ADDR"] if self.number == 0 else "never heard of")
        return f"machine {self.number} ({host})"


class Heartbeat:
    """The signs of life of this machine, which its first process gives, and the watch over the others.

    report: says why the run ends, before the process is ended.
    """

    def __init__(self, report: Callable[[str], None]):
        self.report, self.node = report, int(os.environ["GROUP_RANK"])
        self.machines = [Machine(number) for number in range(int(os.environ["GROUP_WORLD_SIZE"]))]
        self.state, self.is_over = "", threading.Event()
        self.talking = threading.Thread(target=self._talk, daemon=True)

    def begin(self) -> Heartbeat:
        """Start, in the first process of the machine."""
        if os.environ["LOCAL_RANK"] == "0":
            self.talking.start()
        return self

    def end(self) -> None:
        """Tell the others that this machine has done its work."""
        self.state = DONE
        self.is_over.set()
        if self.talking.is_alive():
            self.talking.join()

    def fail(self) -> None:
        """Tell the others that this machine has failed; wait, as it may be because of a lost one, which is reported."""
        self.state = FAILED
        time.sleep(SILENCE + 2 * BEAT)

    def _talk(self) -> None:
        """Say that this machine lives, and hear what the others say, through the store of the first machine."""
        try:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=SILENCE)))  # a client of its own
            store.set(str(self.node), f"{socket.gethostname()} 0")
            store.wait([str(machine.number) for machine in self.machines], START)
            threading.Thread(target=self._watch, daemon=True).start()
            beat, is_over = 0, False
            while not is_over:
                is_over = self.is_over.wait(BEAT)
                beat += 1
                store.set(str(self.node), f"{socket.gethostname()} {self.state or beat}")
                for machine in self.machines:
                    machine.hear(store.get(str(machine.number)).decode())
        except RuntimeError:  # the store is gone
            self._give_up(self.machines[0])

    def _watch(self) -> None:
        """Watch for lost machines, in a thread of its own, as a store that falls silent gives neither answer nor error.

        Then no machine is heard from, and the first one, which keeps the store, is the one reported.
        """
        for machine in self.machines:
            machine.since = time.monotonic()
        while not self.is_over.wait(BEAT):
            if lost := find_lost(self.machines):
                self._give_up(lost)

    def _give_up(self, lost: Machine) -> None:
        self.report(
            f"{lost} is lost: it, or a process of it, has ended, and its own log may say why. Whatever was finished is "
            "kept: type the same command on all machines to go on"
        )
        os._exit(1)


def find_lost(machines: Iterable[Machine]) -> Machine | None:
    """The first machine that is lost, if any; one that has reported a failure only if no other is."""
    lost = [machine for machine in machines if machine.is_lost]
    return min(lost, key=lambda machine: machine.said.endswith(f" {FAILED}"), default=None)
