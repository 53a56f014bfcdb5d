"""Download of the files of one commit into the Hub's cache, by the Hub's library, with a check of their digests.

The library resumes after a lost connection and, if it is killed, keeps the files that have arrived; the file that was
under way starts again. It compares sizes only. Here every file is also checked, before anything reads it, against the
digest by which the cache names its content: sha256 for large files, git's sha1 of a blob for small ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from robustmerge.hub.pins import Pinned, hub_error, snapshot_folder, storage_folder
from robustmerge.stage.settings import UserError


def fetch_pinned(pinned: Pinned, files: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """Fetch the commit's files that match `files` (names or patterns); returns the folder in the Hub's cache.

    What is there is not asked for again, and needs no network. Without one, a cache that another program has filled
    serves as it is. Raises UserError if the Hub refuses or is not reached, the disk is full, or a file arrives damaged.
    """
    from huggingface_hub import snapshot_download

    folder, started = snapshot_folder(pinned), time.monotonic()
    if is_fetched(pinned, files):
        return folder
    unchecked = _unchecked(pinned)
    is_resumed = unchecked.exists()
    with contextlib.suppress(OSError):  # a cache that cannot be written serves those who read it
        unchecked.parent.mkdir(parents=True, exist_ok=True)
        unchecked.touch()
    say(f"fetching {pinned}: {', '.join(files)}")
    try:
        snapshot_download(
            pinned.repository, repo_type=pinned.kind, revision=pinned.revision, allow_patterns=list(files)
        )
    except Exception as error:  # what the network raises differs between versions of the Hub's library
        if _is_disk_full(error):
            raise UserError(
                f"no room for {pinned} in the Hub's cache, {storage_folder(pinned.repository).parent}: {error}. Make "
                "room, or set HF_HOME to a folder on a larger disk; whole files are kept"
            ) from error
        raise hub_error(str(pinned), error, pinned.repository, pinned.revision) from error
    if _list_files(pinned) is not None:  # the Hub was reached, now or before
        _check_digests(pinned, ["*"] if is_resumed else files)
        unchecked.unlink(missing_ok=True)
        say(f"fetched {pinned} in {time.monotonic() - started:.0f} s: {folder}")
    return folder


def is_fetched(pinned: Pinned, files: Sequence[str]) -> bool:
    """Whether the commit's files that match `files` are in the Hub's cache, checked; needs no network."""
    listed = _list_files(pinned)
    if listed is None or _unchecked(pinned).exists():
        return False
    wanted = [PurePosixPath(name) for name in listed if _matches(name, files)]
    if any(name.is_absolute() or ".." in name.parts for name in wanted):  # the list is damaged: ask the Hub again
        return False
    return all((snapshot_folder(pinned) / name).is_file() for name in wanted)


def _is_disk_full(error: Exception) -> bool:
    """Whether there is no room for a file; the Hub's library in Rust has an error of its own for it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)


def _list_files(pinned: Pinned) -> list[str] | None:
    """The names of all files of the commit, by the list that the library keeps in its cache; None without one."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(pinned.repository, repo_type=pinned.kind, revision=pinned.revision)
    except CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _unchecked(pinned: Pinned) -> Path:
    """The marker file that exists while files of the commit are fetched and not all are checked."""
    return storage_folder(pinned.repository, pinned.kind) / "unchecked" / pinned.revision


def _check_digests(pinned: Pinned, files: Sequence[str]) -> None:
    """Remove damaged files from the cache. Raises UserError with their names."""
    folder, damaged = snapshot_folder(pinned), []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        # A link to the content, whose name is its digest; a disk without links has the content here, and no digest.
        if _matches(name, files) and file.is_symlink() and _digest(file, file.readlink().name) != file.readlink().name:
            file.resolve().unlink()
            file.unlink()
            damaged.append(name)
    if damaged:
        raise UserError(
            f"{', '.join(damaged)} of {pinned} arrived damaged: the digest is not the one that the Hub lists. Nothing "
            "of it is kept, and the same command fetches it again; is there a proxy between?"
        )


def _digest(file: Path, like: str) -> str:
    """The digest of a file, of the same kind as `like`: sha256 (64 digits) or git's sha1 of a blob (40)."""
    with open(file, "rb") as opened:
        if len(like) == 64:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % file.stat().st_size + opened.read(), usedforsecurity=False).hexdigest()


def _matches(name: str, files: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in files)
