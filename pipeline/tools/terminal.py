"""Terminal output and input: file sizes, and the question before something is removed or uploaded."""

from __future__ import annotations


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
