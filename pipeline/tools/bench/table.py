"""The benchmark's table: rows as measured, kept as JSON, printed as Markdown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tools.bench.merging_rows import BOUND
from robustmerge.stage.address import commit
from robustmerge.stage.files import write_atomically

PACKAGES = ("torch", "numpy", "safetensors", "peft")
HEADINGS = ("method", "CPU s", "wall s", "memory MB", "of the bound", "of peft")
MISSING = "—"


def describe_machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Where and with what the numbers are made."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        **commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def keep(folder: Path, shape: dict[str, int], measured: Sequence[dict[str, Any]], order: Sequence[str]) -> list[dict]:
    """Write table.json and table.md, and return all rows: a row that was not measured again stays as it was.

    One that fails keeps the numbers it has, and notes the failure. Rows of other shapes of experts are dropped.
    order: the names of all rows.
    """
    file = folder / "table.json"
    known = json.loads(file.read_text()) if file.exists() else {"shape": shape, "rows": []}
    rows = {row["name"]: row for row in known["rows"] if known["shape"] == shape}
    rows |= {row["name"]: _over(rows.get(row["name"]), row) for row in measured}
    sorted_rows = [rows[name] for name in order if name in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"shape": shape, "rows": sorted_rows}, indent=1) + "\n")
    write_atomically(folder / "table.md", table_of(shape, sorted_rows))
    return sorted_rows


def _over(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """The row in the place of the one before, whose numbers outlive a failure."""
    if before is None or "cpu" not in before or "failed" not in row:
        return row
    return {**before, "failed": row["failed"], "failed_on": row["made"]}


def table_of(shape: dict[str, int], rows: Sequence[dict[str, Any]]) -> str:
    """The table with what one needs to read it."""
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    table = "\n".join("| " + " | ".join(_pad(line, widths)) + " |" for line in lines)
    about = (
        f"{shape['experts']} experts, {shape['layers']} layers of 7 modules, width {shape['hidden']} and "
        f"{shape['wide']}, rank {shape['rank']}, float16. CPU s: user and system seconds of a fresh process with its "
        "threads, less those of one that imports the same and merges nothing; wall s: likewise; medians. One thread "
        "of torch; what is read is in the page cache, what is merged is written. Memory: the most the process held of "
        f"its own (RssAnon), libraries included. Of the bound: against the row `{BOUND}` (read every file once, add "
        "up in float32, write nothing). Of peft: against `add_weighted_adapter` of the kind named, measured on one "
        "module of each size and multiplied by how many there are.\n"
    )
    return f"{table}\n\n{about}{_places(rows)}{_failures(rows)}"


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    if line[0] == "---":
        return ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def _cells(row: dict[str, Any]) -> list[str]:
    if "cpu" not in row:
        return [row["name"], "failed", *[MISSING] * 4]
    peft = row.get("peft")
    against = f"{row['cpu'] / peft['cpu']:.2g} of {peft['cpu']:.3g} s ({peft['kind']})" if peft else MISSING
    bound = f"{row['cpu'] / row['bound']:.1f}" if row["bound"] > 0 else MISSING
    name = row["name"] + (" (older: failed since)" if "failed" in row else "")
    return [name, f"{row['cpu']:.2f}", f"{row['wall']:.2f}", f"{row['private']:.0f}", bound, against]


def _places(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every machine and commit that rows were measured on."""
    found: dict[str, list[str]] = {}
    for row in rows:
        made = row["made"]
        libraries = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        place = f"{made['processor']}, {made['cores']} cores, Python {made['python']}, {libraries}, "
        found.setdefault(place + _commit_of(made), []).append(row["name"])
    if len(found) == 1:
        return f"\nMeasured on {next(iter(found))}.\n"
    return "".join(f"\n{', '.join(f'`{name}`' for name in names)}: on {place}.\n" for place, names in found.items())


def _failures(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every row that failed when it was last measured."""
    failed = [(row["name"], _commit_of(row.get("failed_on", row["made"])), row) for row in rows if "failed" in row]
    return "".join(f"\n`{name}` failed on {commit}: {row['failed']}\n" for name, commit, row in failed)


def _commit_of(made: dict[str, Any]) -> str:
    return f"commit {(made['commit'] or 'unknown')[:7]}{' with changes' if made['dirty'] else ''}"
