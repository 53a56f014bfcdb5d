"""Commands as they are typed, for the messages that name one."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable

SHELL_PROGRAMS = ("train_all", "merge_eval")  # these have a script of their own that sets everything up


def command(program: str, keep: Callable[[str], bool] = lambda word: True) -> str:
    """The command that runs `program` with the words of this command line, quoted; `keep` leaves words out."""
    words = [word for word in sys.argv[1:] if keep(word.lstrip("+~"))]
    if not any("," in re.sub(r"\[.*?\]|\{.*?\}", "", word) for word in words):  # nothing is swept over any more
        words = [word for word in words if word not in ("-m", "--multirun")]
    start = ["bash", f"scripts/{program}.sh"] if program in SHELL_PROGRAMS else ["python", f"scripts/{program}.py"]
    return shlex.join([*start, *words])


def read_overrides(words: Iterable[str]) -> dict[str, str]:
    """The words of a command line as keys and values: `+peft.r=8` is `{"peft.r": "8"}`."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs}


def key_of(word: str) -> str:
    """The topmost key that a word of the command line sets: `merge` of `+merge.prune.density=0.3`."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]
