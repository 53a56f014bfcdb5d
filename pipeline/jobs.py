"""Run jobs as child processes side by side: the longest first, one progress bar for all, a log file each.

A child is a plain program that gets its work as a JSON file and reports events (`pipeline.events`); whatever else it
prints goes to its log. A failed child does not stop the others. Children end when we end, however we end: each
watches our process (`robustmerge.stage.process.end_with_process`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from pipeline.events import Event, read_event
from robustmerge.stage.files import write_atomically
from robustmerge.stage.process import process_start
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import plain

CHILD = Path(__file__).resolve().parent / "child.py"
BAR = re.compile(r"\d%\|")  # in what a library's progress bar prints
LAYOUT = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}  "
STATUS_EVERY = 30.0  # seconds between status lines where there is no terminal
PACE_OVER = 10  # status lines; not the whole run, whose start may have counted work that was already done
# The memory of a batch comes in blocks of megabytes. By default glibc gives them back to the system, which clears their
# pages again for the next batch: a fifth of the time of a small model on a CPU. Other C libraries ignore this.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
LONGEST_LINE = 2**16  # bytes of a child's output without a line's end after which one is put there

Launch = Callable[[Path, Path, int], tuple[list[str], dict[str, str]]]


def launch_plain(script: Path, job: Path, slot: int, threads: int = 1) -> tuple[list[str], dict[str, str]]:
    """Launch command of a plain process.

    With one thread its bytes do not depend on what runs beside it; more are for a large model that is trained alone.
    """
    return [sys.executable, str(script), str(job)], dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@dataclass(frozen=True)
class Job:
    """One child process. items: what it does, one after the other; cost: its length relative to other jobs.

    launch: arguments and environment from the script, the job file and the slot (0, 1, ... of those side by side).
    """

    name: str
    items: list[dict]
    cost: float = 1.0
    launch: Launch = launch_plain


@dataclass
class RunningJob:
    """A job, its process, and what the process has reported so far.

    item: the name of the item it is working on. tail: the last lines of its other output, without progress bars.
    """

    job: Job
    process: subprocess.Popen
    file: Path
    log: Path
    slot: int
    started: float = field(default_factory=time.monotonic)
    item: str = ""
    status: str = ""
    fraction: float = 0.0
    finished_items: int = 0
    tail: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    def handle(self, event: Event) -> None:
        """Record an event of the child. Progress never goes back; equal errors of torchrun's processes count once."""
        if event.event == "item":
            self.item = event.text
            self.finished_items = event.number - 1
            self._advance(0.0)
        elif event.event == "progress":
            self.status = event.text
            self._advance(event.fraction)
        elif event.event == "message":
            self.messages.append(event.text)
        elif event.text not in self.errors:
            self.errors.append(event.text)

    @property
    def share(self) -> str:
        """How much is done, in words, and the item that is being done, unless the job is named after it."""
        item = f" ({self.item})" if self.item not in ("", self.job.name) else ""
        return f"{self.job.name} {100 * self.fraction:.0f} %{item}"

    def _advance(self, fraction: float) -> None:
        self.fraction = max(self.fraction, min((self.finished_items + fraction) / len(self.job.items), 1.0))


def run_jobs(title: str, jobs: Sequence[Job], side_by_side: int, logs: Path, in_step: bool = False) -> None:
    """Run all jobs, `side_by_side` at a time.

    in_step: other machines run the same jobs together with this one, so that none begins after one has failed.
    Raises UserError after all have ended if any failed, with each one's message and log.
    """
    if not jobs:
        return
    logs.mkdir(parents=True, exist_ok=True)
    _remove_orphans(logs)
    waiting = sorted(jobs, key=lambda job: -job.cost)
    running: list[RunningJob] = []
    failures: list[str] = []
    with _Display(title, waiting) as display:
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    slot = min(set(range(side_by_side)) - {child.slot for child in running})
                    running.append(_start(waiting.pop(0), logs, slot))
                time.sleep(0.1)
                for ended in [child for child in running if child.process.poll() is not None]:
                    running.remove(ended)
                    _close(ended)
                    failure = _describe_failure(ended)
                    failures += [failure] if failure else []
                    if failure and in_step:
                        waiting.clear()
                    display.finish(ended, failure is None)
                display.show(running)
        finally:
            _terminate(running)
    if failures:
        raise UserError("\n".join(failures))


def _remove_orphans(logs: Path) -> None:
    """Remove job files of programs that were killed; their children have ended with them."""
    for file in logs.glob("*.job.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            parent = json.loads(file.read_text())["parent"]
            if parent["host"] == socket.gethostname() and process_start(parent["pid"]) != parent["start"]:
                file.unlink()


def _start(job: Job, logs: Path, slot: int) -> RunningJob:
    stem = job.name.replace("/", "-").replace(" ", "-")
    file, log = logs / f"{stem}-{uuid.uuid4().hex}.job.json", logs / f"{stem}.log"
    parent = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
    write_atomically(file, json.dumps({"parent": parent, "items": job.items}, indent=1))
    command, environment = job.launch(CHILD, file, slot)
    process = subprocess.Popen(
        command,
        env={**KEEP_MEMORY, **os.environ, "TOKENIZERS_PARALLELISM": "false", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    child = RunningJob(job, process, file, log, slot)
    child.reader = threading.Thread(target=_read, args=(child,), daemon=True)
    child.reader.start()
    return child


def _read(child: RunningJob) -> None:
    """Take the child's events and copy the rest of its output to its log; a carriage return ends a line as well."""
    assert child.process.stdout is not None
    rest = b""
    with open(child.log, "ab") as log:
        while chunk := os.read(child.process.stdout.fileno(), 65536):
            *lines, rest = re.split(rb"[\r\n]", rest + chunk)
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                _handle_line(child, line, log)
        _handle_line(child, rest, log)


def _handle_line(child: RunningJob, line: bytes, log: BinaryIO) -> None:
    text = line.decode(errors="replace").rstrip()
    event = read_event(text)
    if event is not None:
        child.handle(event)
        if event.event == "progress":
            return
        text = event.text or f"[{event.number}/{len(child.job.items)}]"
    elif text and not BAR.search(text):
        child.tail = [*child.tail[-39:], text]
    if text:
        with contextlib.suppress(OSError):  # a full disk must not hide why the child fails
            log.write(plain(text).encode() + b"\n")
            log.flush()


def _close(child: RunningJob) -> None:
    if child.reader:
        child.reader.join(timeout=5)
    if child.process.stdout:
        child.process.stdout.close()
    child.file.unlink(missing_ok=True)


def _describe_failure(child: RunningJob) -> str | None:
    if child.process.returncode == 0:
        return None
    ended = "\n".join([f"ended with status {child.process.returncode}", *child.tail[-8:]])
    message = "\n".join(child.errors) or ended
    return f"{child.job.name}: {message}\n  (log: {child.log})"


def _terminate(running: Sequence[RunningJob]) -> None:
    """End whatever still runs: it may be half-way through an interrupt of its own, so it gets ten seconds."""
    for child in running:
        child.process.terminate()
    deadline = time.monotonic() + 10
    for child in running:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
        _close(child)


class _Display:
    """One bar over all jobs, weighted by their cost; plain lines now and then where there is no terminal."""

    def __init__(self, title: str, jobs: Sequence[Job]):
        self.title, self.total, self.count = title, sum(job.cost for job in jobs), len(jobs)
        self.finished, self.n_finished = 0.0, 0
        self.terminal = sys.stderr.isatty()
        self.last_printed = time.monotonic()
        self.printed: deque[tuple[float, float]] = deque(maxlen=PACE_OVER)  # when, and how much was done

    def __enter__(self) -> _Display:
        self.bar = tqdm(total=self.total, desc=self.title, disable=not self.terminal, leave=False, dynamic_ncols=True)
        self.bar.bar_format = LAYOUT
        if not self.terminal:
            print(f"{self.title}: {self.count} to do", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, running: Sequence[RunningJob]) -> None:
        """Bring the bar up to date and pass on the children's messages."""
        for child in running:
            while child.messages:
                tqdm.write(f"  {child.messages.pop(0)}", file=sys.stdout)
        self.bar.n = min(self.total, self.finished + sum(child.job.cost * child.fraction for child in running))
        shares = plain(", ".join(child.share for child in running))
        status = running[0].status if len(running) == 1 else shares
        self.bar.bar_format = LAYOUT + status.replace("\n", " ").replace("{", "(").replace("}", ")")
        self.bar.refresh()
        if not self.terminal and time.monotonic() - self.last_printed > STATUS_EVERY:
            self.last_printed = time.monotonic()
            print(f"{self.title}: {100 * self.bar.n / self.total:.0f} %{self._time_left()} ({shares})", flush=True)

    def _time_left(self) -> str:
        """The time that is left at the pace of the last status lines, in words; nothing where none is known."""
        self.printed.append((self.last_printed, self.bar.n))
        seconds, done = (last - first for first, last in zip(self.printed[0], self.printed[-1], strict=True))
        return f", about {(self.total - self.bar.n) * seconds / done:.0f} s left" if done > 0 else ""

    def finish(self, child: RunningJob, succeeded: bool) -> None:
        """Report that a job has ended."""
        self.show([child])
        self.finished += child.job.cost
        self.n_finished += 1
        seconds = time.monotonic() - child.started
        state = f"done in {seconds:.0f} s" if succeeded else f"FAILED after {seconds:.0f} s"
        tqdm.write(f"  [{self.n_finished}/{self.count}] {plain(child.job.name)}: {state}", file=sys.stdout)
        sys.stdout.flush()
