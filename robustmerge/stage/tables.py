"""Formatters of rows (CSV for programs, Markdown for pages, aligned columns for a terminal) and of sizes."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table as CSV with a title line; list items separated by spaces, numbers with 6 digits."""
    file = io.StringIO()
    if rows:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_format_cell(value) for value in row.values()] for row in rows)
    return file.getvalue()


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(_format_cell, value)) if isinstance(value, list) else str(value)


def format_markdown(titles: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """A table in Markdown. text: the columns that are aligned to the left; numbers go to the right."""
    cells = [titles, *rows]
    widths = _widths(cells)
    rule = ["-" * width if i in text else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    aligned = [_align(row, widths, text) for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:]))


def format_columns(titles: Sequence[str], rows: Iterable[Sequence[Any]], text: Collection[int] = (0,)) -> list[str]:
    """Format aligned columns for a terminal, titles first. text: the columns that are aligned to the left."""
    cells = [list(map(str, row)) for row in (titles, *rows)]
    widths = _widths(cells)
    return ["  ".join(_align(row, widths, text)).rstrip() for row in cells]


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]


def _align(row: Sequence[str], widths: Sequence[int], text: Collection[int]) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if i in text else cell.rjust(width) for i, (cell, width) in pairs]


def format_size(n_bytes: float) -> str:
    """Format a number of bytes: `512 B`, `1.5 kB`, `14.1 GB`."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
