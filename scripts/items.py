"""What is left to do, its description in a job file, and how it is cut into pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from robustmerge.runs import Address
from scripts.line import Line

T = TypeVar("T")


def once(lines: Sequence[Line], list_one: Callable[[Line], Sequence[tuple[Address, Any]]]) -> list[tuple[Address, Any]]:
    """What the lines ask for and is not complete, each address once."""
    wanted = {address.path: (address, value) for line in lines for address, value in list_one(line)}
    return [pair for pair in wanted.values() if not pair[0].is_complete()]


def item_of(stage: str, address: Address, settings: Any = None, **inputs: Any) -> dict:
    """The description of one stage's work, as a job file holds it."""
    described = {"stage": stage, "name": address.short, "address": address.to_json(), **inputs}
    if settings is not None:
        described["settings"] = dataclasses.asdict(settings)
    return described


def logs_of(lines: Sequence[Line]) -> Path:
    return lines[0].root / "logs"


def cut_evenly(items: Sequence[T], costs: Sequence[float], pieces: int) -> list[list[tuple[T, float]]]:
    """At most so many consecutive pieces of about equal cost, none of them empty; each item with its cost."""
    found: list[list[tuple[T, float]]] = [[] for _ in range(pieces)]
    before, total = 0.0, sum(costs)
    for item, cost in zip(items, costs, strict=True):
        found[min(int(pieces * (before + cost / 2) / total), pieces - 1)].append((item, cost))
        before += cost
    return [piece for piece in found if piece]
