"""sha256 of large files, remembered: a base of 14 GB is read once, not at every start.

The memory is this user's (`$XDG_CACHE_HOME/robustmerge/digests.json`, else `~/.cache/...`) and not of one folder of
runs: bases and the Hub's cache are shared by all of them, and it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from robustmerge.whole_files import write_atomically

SMALL = 16 * 2**20  # bytes below which a file is read anew: that takes 10 ms
SETTLED_NS = 2 * 10**9  # a file that was written later than this before it was read may change unnoticed


def digest_of(path: Path) -> str:
    """sha256 of a file. A file of 16 MiB or more is known again by its path, size, inode and times.

    Its time of change (ctime) is among them, which no program can set back. Raises OSError if it cannot be read.
    """
    path, started = Path(path).resolve(), time.time_ns()
    signature = _signature(path)
    if signature[0] < SMALL:
        return _sha256(path)
    known = _read()
    if known.get(str(path), [None])[:-1] == signature:
        return known[str(path)][-1]
    digest = _sha256(path)
    if _signature(path) == signature and started - signature[-1] > SETTLED_NS:
        _remember(str(path), [*signature, digest])
    return digest


def memory() -> Path:
    """The file that keeps the digests."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches) / "robustmerge" / "digests.json"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(path: Path) -> list[int]:
    """Size in bytes, inode, and the times of the last writing and the last change in nanoseconds."""
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read() -> dict[str, list]:
    """path -> its signature and digest. A memory that cannot be read is empty."""
    try:
        read = json.loads(memory().read_text())
        return {path: known for path, known in read.items() if isinstance(known, list) and _is_digest(known[-1:])}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_digest(last: list) -> bool:
    return bool(last) and isinstance(last[0], str) and len(last[0]) == 64


def _remember(path: str, known: list) -> None:
    """Add one file, and forget those that are gone. A memory that cannot be written is done without."""
    with contextlib.suppress(OSError):
        memory().parent.mkdir(parents=True, exist_ok=True)
        kept = {other: digest for other, digest in _read().items() if os.path.exists(other)}
        write_atomically(memory(), json.dumps(kept | {path: known}, indent=1, sort_keys=True) + "\n")
