"""Terminal output that programs share: results, paths, durations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robustmerge.stage.address import Address, read_manifest


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
