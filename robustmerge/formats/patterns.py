"""Patterns of module names in a config, foreign ones matched as PEFT matches them, in a bounded time.

A regular expression of 20 characters can take longer on one name than anyone waits. Names, plain or escaped, are looked
up; everything else is matched by this file run as a program of its own, whose time and memory are limited.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

SECONDS = 2  # of a processor, for all patterns of a field on all modules
MEMORY = 2**30  # bytes
# A name, whole (`^model\.layers\.0`) or its last parts (`q_proj`): no character of it stands for others.
_LITERAL = re.compile(r"(\^?)((?:[^\\.^$*+?{}\[\]|()]|\\[^a-zA-Z0-9])+)\$?")


class PatternError(ValueError):
    """Raised for patterns that cannot be used. place: of one that is no regular expression; None: they take long."""

    def __init__(self, reason: str, place: int | None = None):
        self.place = place
        super().__init__(reason)


def find_first_matches(keys: Sequence[str], modules: Sequence[str]) -> list[str | None]:
    """Find for each module the first key of rank_pattern or alpha_pattern that matches the end of its name.

    Source: `get_pattern_key` of peft. Raises PatternError.
    """
    places: dict[tuple[bool, str], int] = {}  # (whole, name) -> place among the keys
    others: list[int] = []
    for place, key in enumerate(keys):
        if literal := _LITERAL.fullmatch(key):
            name = re.sub(r"\\(.)", r"\1", literal[2], flags=re.DOTALL)
            places.setdefault((bool(literal[1]), name), place)
        else:
            others.append(place)
    expressions = tuple(rf"(.*\.)?({keys[place]})$" for place in others)
    try:
        matches = _match("match", expressions, tuple(modules)) if others else [None] * len(modules)
    except PatternError as error:
        raise PatternError(str(error), None if error.place is None else others[error.place]) from None
    first = []
    for module, match in zip(modules, matches, strict=True):
        names = [(True, module), *((False, end) for end in list_ends(module))]
        candidates = [places[name] for name in names if name in places]
        candidates += [] if match is None else [others[match]]
        first.append(keys[min(candidates)] if candidates else None)
    return first


def match_whole(pattern: str, modules: Sequence[str]) -> list[bool]:
    """Whether a regular expression matches the whole name of each module. Raises PatternError."""
    return [match is not None for match in find_first_whole_matches([pattern], modules)]


def find_first_whole_matches(patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
    """The place of the first regular expression that matches the whole name, for each module. Raises PatternError."""
    return _match("fullmatch", tuple(patterns), tuple(modules))


def list_ends(module: str) -> Iterator[str]:
    """The ends of a dotted name, longest first: `a.b.c`, `b.c`, `c`."""
    while module:
        yield module
        module = module.partition(".")[2]


@lru_cache(maxsize=256)
def _match(method: str, patterns: tuple[str, ...], names: tuple[str, ...]) -> list[int | None]:
    """Match in a process of its own: for each name the place of the first pattern that matches it."""
    program = [sys.executable, "-I", "-S", "-W", "ignore", __file__]
    work = json.dumps([SECONDS, method, patterns, names])
    try:
        done = subprocess.run(program, input=work, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise PatternError(f"its regular expressions take more than {SECONDS} s") from None
    answer = json.loads(done.stdout)
    if isinstance(answer, dict):
        raise PatternError(**answer)
    return answer


def _answer(method: str, patterns: Sequence[str], names: Sequence[str]) -> list[int | None] | dict[str, Any]:
    compiled: list[Callable[[str], object]] = []
    for place, pattern in enumerate(patterns):
        try:
            compiled.append(getattr(re.compile(pattern), method))
        except (re.error, OverflowError, RecursionError) as error:
            return {"reason": getattr(error, "msg", None) or str(error), "place": place}
    return [next((place for place, match in enumerate(compiled) if match(name)), None) for name in names]


if __name__ == "__main__":
    seconds, *work = json.load(sys.stdin)
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process, even within a match
    json.dump(_answer(*work), sys.stdout)
