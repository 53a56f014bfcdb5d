"""The last lines of every program: what was made, where, how long it took, what to type next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robustmerge.stage.address import REPOSITORY, Address, read_manifest


def tell_made(addresses: Iterable[Address]) -> None:
    """After a program of one stage."""
    made = list({address.path: address for address in addresses}.values())
    if made:
        _tell(f"{len(made)} result{'s' if len(made) > 1 else ''}", made, made[0].root)


def shown(path: Path) -> str:
    """A path as short as it can be typed from the repository."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _tell(title: str, addresses: Iterable[Address], root: Path) -> None:
    print(f"\n{title}, under {shown(root)}:")
    for address in addresses:
        record = read_manifest(address.manifest)["record"] if address.manifest.exists() else {}
        told = [f"{record['seconds']:.0f} s"] if "seconds" in record else []
        if "modules" in record:
            told.append(f"{record['modules']} modules")
        if record.get("effective_strength") is not None:
            told.append(f"update times {record['effective_strength']:g}")
        print(f"  {address.short}" + (f"  ({', '.join(told)})" if told else ""))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
