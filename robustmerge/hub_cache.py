"""What the Hub's cache on this machine holds of a commit. Asks nobody, and loads no heavy library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from robustmerge.pins import Pinned, snapshot_folder, storage_folder
from robustmerge.whole_files import write_atomically

WEIGHTS = (".safetensors", ".bin")
Listing = Mapping[str, tuple[int, str]]  # file -> size in bytes, digest


def is_fetched(pinned: Pinned, files: Sequence[str]) -> bool:
    """Whether all of `files` (names or patterns) that the commit has lie in the Hub's cache. Asks nobody.

    Known by the list of the commit's files that `fetch_pinned` keeps. Where there is none (another program has filled
    the cache): something is there, weights too if any are asked for, and all files of an index.
    """
    folder, listing = snapshot_folder(pinned), read_listing(pinned)
    if listing is not None:
        return all(size_of(folder / name) == size for name, (size, _) in wanted(listing, files).items())
    there = [name for name in _names(folder) if _matches(name, files)]
    asked = any(name.endswith(WEIGHTS) for name in files)
    shards = {shard for name in there if name.endswith(".index.json") for shard in _shards(folder / name)}
    whole = all((folder / shard).exists() for shard in shards if _matches(shard, files))
    return bool(there) and whole and (not asked or any(name.endswith(WEIGHTS) for name in there))


def read_listing(pinned: Pinned) -> Listing | None:
    """The list of a commit's files, if it was kept."""
    try:
        read = json.loads(_listing_file(pinned).read_text())
        return {str(name): (int(size), str(digest)) for name, (size, digest) in read.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def keep_listing(pinned: Pinned, listing: Listing) -> None:
    """Keep the list of a commit's files, which never changes."""
    kept = _listing_file(pinned)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(listing, indent=1, sort_keys=True) + "\n")


def part_of(pinned: Pinned, digest: str) -> Path:
    """Where a file lies while it is fetched; without its suffix, where it lies in the end."""
    return storage_folder(pinned.repository) / "blobs" / f"{digest}.incomplete"


def wanted(listing: Listing, files: Sequence[str]) -> Listing:
    """The part of a list that names or patterns ask for."""
    return {name: known for name, known in listing.items() if _matches(name, files)}


def size_of(file: Path) -> int:
    """Bytes of a file; -1 where there is none, which no file has."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _listing_file(pinned: Pinned) -> Path:
    return storage_folder(pinned.repository) / "listings" / f"{pinned.revision}.json"


def _matches(name: str, files: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in files)


def _names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
