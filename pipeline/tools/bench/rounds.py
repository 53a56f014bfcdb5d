"""One engine for every benchmark: rows that are measured in rounds, and the table that is saved after each."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tools.doctor.machine import processor_name
from robustmerge.stage.address import commit
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError


@dataclass
class Series:
    """One row while it is measured. measure: takes one measurement, values by name, `wall` (seconds) among them.

    failed: why the row is not measured any more.
    """

    name: str
    measure: Callable[[], dict[str, Any]]
    measurements: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    def values(self, key: str) -> list[Any]:
        return [measurement[key] for measurement in self.measurements]

    def median(self, key: str) -> float:
        return statistics.median(self.values(key))

    def add(self) -> None:
        """Take one more measurement."""
        try:
            self.measurements.append(self.measure())
            numbers = {key: value for key, value in self.measurements[-1].items() if isinstance(value, int | float)}
            say(f"{self.name}: {', '.join(f'{key} {value:.4g}' for key, value in numbers.items())}")
        except UserError as error:
            self.failed = str(error)
            say(f"{self.name}: failed: {error}")


def run_rounds(
    rows: Sequence[Series], rounds: int, seconds: float = math.inf, repeat_below: float = math.inf
) -> Iterator[int]:
    """Measure every row once a round; yields the number of rounds done, after each. A row that fails stays out.

    seconds: no round begins that would probably end later. repeat_below: a row that takes longer is measured once.
    """
    started, longest = time.monotonic(), 0.0
    for number in range(rounds):
        begun = time.monotonic()
        if number and begun - started + longest > seconds:
            say(f"no time for another round: {number} of {rounds}")
            return
        for row in rows:
            if not row.failed and not (number and row.measurements[0]["wall"] > repeat_below):
                row.add()
        longest = max(longest, time.monotonic() - begun)
        yield number + 1


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of the ratios within a round: what slows the machine for a while slows both."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what the numbers are measured."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        **commit(),
    }


def format_machine(machine: dict[str, Any]) -> str:
    """What `describe_machine` returns, in one line."""
    gpu = [machine["gpu"]] if machine.get("gpu") else []
    libraries = [f"{name} {version}" for name, version in machine["versions"].items()]
    parts = [*gpu, machine["processor"], f"{machine['cores']} cores", f"Python {machine['python']}", *libraries]
    return ", ".join([*parts, format_commit(machine)])


def format_commit(machine: dict[str, Any]) -> str:
    return f"commit {(machine['commit'] or 'unknown')[:7]}{' with changes' if machine['dirty'] else ''}"


def save(folder: Path, table: dict[str, Any], markdown: str) -> None:
    """Write table.json and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.json", json.dumps(table, indent=1) + "\n")
    write_atomically(folder / "table.md", markdown)


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)
