"""Terminal output and input that programs share: results, paths, durations, sizes, and the yes-no question."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from robustmerge.stage.address import Address, read_manifest
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


def print_results(addresses: Iterable[Address], title: str = "") -> None:
    """Print a program's results, one per line. title: heads the list."""
    results = list({address.path: address for address in addresses}.values())
    if not results:
        return
    title = title or f"{len(results)} result{'s' if len(results) > 1 else ''}"
    print(f"\n{title}, under {format_path(results[0].root)}:")
    for address in results:
        record = read_manifest(address.manifest)["record"] if address.manifest.exists() else {}
        seconds, factor = (record.get(key) for key in ("seconds", "effective_strength"))
        facts = [f"{seconds:.0f} s"] if isinstance(seconds, (int, float)) else []
        if "modules" in record:
            facts.append(f"{record['modules']} modules")
        if isinstance(factor, (int, float)):
            facts.append(f"update times {factor:g}")
        print(f"  {address.short}" + (f"  ({', '.join(facts)})" if facts else ""))


def format_path(path: Path) -> str:
    """Format a path as the user can type it: relative if it is below the current directory, else absolute."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def format_seconds(seconds: float) -> str:
    """Format a duration: `45 s`, `3 min 5 s`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def format_size(n_bytes: float) -> str:
    """Format a number of bytes: `512 B`, `1.5 kB`, `14.1 GB`."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def confirm(question: str) -> bool:
    """Ask a yes-no question; the answer is no if standard input is closed."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
