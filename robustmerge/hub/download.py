"""Files of one commit of a repository, fetched into the Hub's cache: whole, checked, and resumed after a cut.

The Hub's library begins a file again when its process has ended, and compares sizes only. Here a cut file is kept
(`blobs/<digest>.incomplete`) and goes on where it stopped, also in another process, and every file is compared with
the digest that the Hub lists: sha256 for large files, git's sha1 for small ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from robustmerge.hub.pins import Pinned, is_final, refused, snapshot_folder, storage_folder
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError

TRIES = 5  # in a row that bring nothing
WAIT_S = 1.0  # before the second try; twice as long before each further one
TELL_EVERY_S = 30.0

WEIGHTS = (".safetensors", ".bin")
Listing = Mapping[str, tuple[int, str]]  # file -> size in bytes, digest


def fetch_pinned(pinned: Pinned, files: Sequence[str], say: Callable[[str], None] = print) -> Path:
    """Fetch those of `files` (names or patterns) that the commit has, and return the folder in the Hub's cache.

    What is there is not asked for again, and needs no network. Shows progress bars on a terminal, and says how far it
    is every half minute elsewhere.
    Raises UserError if the Hub refuses or is not reached, the disk is too small, or a file arrives damaged twice.
    """
    folder = snapshot_folder(pinned)
    if is_fetched(pinned, files):
        return folder
    try:
        listing = _list_files(pinned)
    except Exception as error:  # what the network raises differs between versions of the Hub's library
        raise refused(str(pinned), error, pinned.repository, pinned.revision) from error
    missing = {name: known for name, known in wanted(listing, files).items() if size_of(folder / name) != known[0]}
    to_come = sum(max(size - _arrived(pinned, digest), 0) for size, digest in missing.values())
    _check_space(pinned, to_come)
    total, started = sum(size for size, _ in missing.values()), time.monotonic()
    if missing:
        kept = f", {_bytes(total - to_come)} of it here already" if to_come < total else ""
        say(f"fetching {pinned}: {len(missing)} files, {_bytes(total)}{kept}")
    done = 0
    for name, (size, digest) in missing.items():
        with _telling(part_of(pinned, digest), done, total, say):
            _fetch_file(pinned, name, size, digest, say)
        done += size
    if missing:
        say(f"fetched {pinned} in {time.monotonic() - started:.0f} s: {folder}")
    return folder


def _arrived(pinned: Pinned, digest: str) -> int:
    """Bytes of a file that are here, whole for another commit or cut."""
    part = part_of(pinned, digest)
    return max(size_of(part.with_suffix("")), size_of(part), 0)


def _list_files(pinned: Pinned) -> Listing:
    """All files of the commit, by the Hub; the answer is kept in the cache."""
    from huggingface_hub import HfApi

    known = read_listing(pinned)
    if known is None:
        tree = HfApi().list_repo_tree(pinned.repository, recursive=True, revision=pinned.revision)
        entries = [entry for entry in tree if getattr(entry, "size", None) is not None]
        known = {entry.path: (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id) for entry in entries}
        keep_listing(pinned, known)
    return known


def _fetch_file(pinned: Pinned, name: str, size: int, digest: str, say: Callable[[str], None]) -> None:
    """Fetch one file, going on with what is there of it, and give it its name in the commit's folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    part = part_of(pinned, digest)
    blob = part.with_suffix("")
    locks = storage_folder(pinned.repository).parent / ".locks" / storage_folder(pinned.repository).name
    for folder in (part.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(locks / f"{digest}.lock"):  # the library's own
            for last in (False, True):
                if blob.exists():
                    break
                _bring(pinned, name, size, part, say)
                found = _digest(part, digest)
                if found == digest:
                    part.rename(blob)
                    break
                part.unlink()
                told = f"{name} of {pinned} arrived damaged: its digest is {found}, the Hub lists {digest}"
                if last:
                    raise UserError(
                        f"{told}. It was fetched twice and nothing of it is kept; is there a proxy between?"
                    )
                say(f"{told}; it is fetched again")
        hf_hub_download(pinned.repository, name, revision=pinned.revision)
    except UserError:
        raise
    except Exception as error:
        raise _cut(pinned, name, error) from error


def _bring(pinned: Pinned, name: str, size: int, part: Path, say: Callable[[str], None]) -> None:
    """Fetch what is missing of `part`; a cut connection is taken up again while each try brings something."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url, failed = hf_hub_url(pinned.repository, name, revision=pinned.revision), 0
    while True:
        if size_of(part) > size:
            part.unlink()
        before = max(size_of(part), 0)
        try:
            with open(part, "ab") as file, _bars_shown():
                http_get(
                    url, file, resume_size=before, headers=build_hf_headers(), expected_size=size,
                    displayed_filename=Path(name).name,
                )  # fmt: skip
            return
        except Exception as error:
            failed = 1 if size_of(part) > before else failed + 1
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            if failed >= TRIES or full or is_final(error):
                raise
            say(f"{name}: cut after {_bytes(max(size_of(part), 0))} of {_bytes(size)}; it goes on from there")
            time.sleep(WAIT_S * 2 ** (failed - 1))


def _cut(pinned: Pinned, name: str, error: Exception) -> UserError:
    if is_final(error):
        return refused(str(pinned), error, pinned.repository, pinned.revision)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{name} of {pinned} could not be fetched ({reason}); what has arrived is kept, and the same command goes on "
        "from there"
    )


def _digest(file: Path, like: str) -> str:
    """The digest of a file, of the kind that `like` is: sha256 (64 digits) or git's sha1 of a blob (40)."""
    with open(file, "rb") as opened:
        if len(like) == 64:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % file.stat().st_size + opened.read(), usedforsecurity=False).hexdigest()


def _check_space(pinned: Pinned, needed: int) -> None:
    """Raises UserError if the disk of the Hub's cache has no room for `needed` bytes."""
    cache = storage_folder(pinned.repository).parent
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{pinned} needs {_bytes(needed)} in {cache}, where {_bytes(free)} are free; make room, or set HF_HOME "
            "to a folder on a larger disk"
        )


@contextlib.contextmanager
def _telling(part: Path, done: int, total: int, say: Callable[[str], None]) -> Iterator[None]:
    """Say now and then how far it is, where nobody sees the progress bars."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(TELL_EVERY_S):
            if part.exists():
                say(f"fetched {_bytes(done + max(size_of(part), 0))} of {_bytes(total)}")

    if not sys.stderr.isatty():
        threading.Thread(target=tell, name="tell-download", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def _bars_shown() -> Iterator[None]:
    """The Hub's progress bars, which transformers silences together with its own; not against the user's setting."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silenced = are_progress_bars_disabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if silenced:
        enable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            disable_progress_bars()


def _bytes(size: float) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"


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
