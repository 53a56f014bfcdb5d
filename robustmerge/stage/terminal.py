"""Protection of the terminal from what a program prints of other people's files, and the yes-no question."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from robustmerge.stage.text import plain


class _PlainOutput:
    """A text stream whose control characters are shown as escapes: whatever is printed, no terminal obeys it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(plain(text))
        except BrokenPipeError:  # whoever read it, as `head` does, wants no more; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_terminal() -> contextlib.AbstractContextManager:
    """Make standard output plain while the context lasts; what cannot be encoded or decoded stops no program."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "replace")):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=errors)
    return contextlib.redirect_stdout(_PlainOutput(sys.stdout))


def confirm(question: str) -> bool:
    """Ask a yes-no question; the answer is no if standard input is closed."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
