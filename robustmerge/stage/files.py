"""File access: atomic writing (to a temporary name, then renamed), reading of JSON objects, cached digests."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from robustmerge.stage.settings import UserError
from robustmerge.stage.text import plain, quote

BESIDE = ".part"  # ending of a file that is being written
LARGEST_JSON = 2**28  # bytes of an object, as the scores of a million questions; parsing takes ten times as much
DEPTH = 100  # levels of lists and objects in JSON from elsewhere
LONGEST_NAME = 200  # bytes; a file system allows 255, and what is written beside it has a longer name
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_VALUE = re.compile("[\ud800-\udfff]")

SMALL = 16 * 2**20  # bytes below which a file is read anew: that takes 10 ms
SETTLED_NS = 2 * 10**9  # a file that was changed less than this before it was read may change again unnoticed


def sha256_of(path: Path) -> str:
    """sha256 of a file; of a folder, the sha256 over the names and digests of its files."""
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()} {cached_sha256(file)}\n" for file in list_files(path)]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """List the files in a folder and below, sorted: regular ones, and links to such except into /proc or /sys.

    Raises OSError if the kind of one cannot be determined.
    """
    return sorted(f for f in folder.rglob("*") if f.is_file() and not (f.is_symlink() and is_of_kernel(f)))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as that is possible; there may be none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_of_kernel(path: Path) -> bool:
    """Whether a path leads into /proc or /sys, whose files may have no end."""
    return path.resolve().parts[1:2] in (("proc",), ("sys",))


class WholeFile:
    """Context manager of an atomic write: the file appears when the block ends without an error, otherwise not at all.

    file: what to write to, inside the block. alone: no other process writes this file, so what is left beside it is
    of runs that were killed, and is removed first. `finish` and `publish` by hand are for several files that are to
    appear together.
    """

    file: BinaryIO

    def __init__(self, path: Path, alone: bool = False):
        self.path, self._alone = path, alone
        self._beside = path.with_name(f".{path.name}.{os.getpid()}{BESIDE}")

    def __enter__(self) -> Self:
        for left in find_unpublished(self.path) if self._alone else [self._beside]:
            left.unlink(missing_ok=True)
        self.file = open(self._beside, "xb")  # noqa: SIM115  (closed in finish or drop; never written through a link)
        return self

    def finish(self) -> None:
        """Bring all bytes to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def publish(self) -> None:
        """Rename the finished file to its name."""
        os.replace(self._beside, self.path)

    def drop(self) -> None:
        """Remove an unpublished file."""
        with contextlib.suppress(OSError):  # a full disk, where the rest of the buffer should go
            self.file.close()
        self._beside.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self.publish()
        finally:
            self.drop()


class FolderWriter:
    """Context manager that writes a folder: all files appear when the block ends without an error, otherwise none.

    large: the files that are written inside the block. small: the others by name, in the order of publication; a
    subclass may give them at the block's end (`complete`).
    """

    def __init__(self, folder: Path, large: Sequence[WholeFile], small: Mapping[str, str | bytes] | None = None):
        self.folder, self._large, self._small = folder, large, small or {}

    def complete(self) -> Mapping[str, str | bytes]:
        """Write what the large files still lack, and return the small ones."""
        return self._small

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            for file in self._large:
                opened.callback(file.__enter__().drop)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if kind is None:
                files = [*self._large, *map(self._open_small, self.complete().items())]
                for file in files:
                    file.finish()
                with contextlib.ExitStack() as published:
                    for file in files:
                        published.callback(file.path.unlink, missing_ok=True)
                        file.publish()
                    published.pop_all()

    def _open_small(self, named: tuple[str, str | bytes]) -> WholeFile:
        name, content = named
        file = WholeFile(self.folder / name).__enter__()
        self._opened.callback(file.drop)
        file.file.write(content.encode() if isinstance(content, str) else content)
        return file


def find_unpublished(path: Path) -> Iterator[Path]:
    """Find the unpublished parts of a file, written by any process."""
    return path.parent.glob(f".{glob.escape(path.name)}.*{BESIDE}")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: the file is there whole or not at all."""
    with WholeFile(Path(path)) as whole:
        whole.file.write(content.encode() if isinstance(content, str) else content)


def expand(path: str | Path) -> Path:
    """The path with the home folder of a user in place of `~`; as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def require_file(path: Path, what: str) -> Path:
    """Return the path of a regular file. what: the kind of file, for messages, as in `a manifest`.

    Raises UserError if nothing is there, or something that is not read as a file: a folder, a named pipe, a device, a
    link to nothing, git-lfs's stand-in for a file that was not fetched.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise UserError(
                f"{path} should be {what}, but is a link to {path.readlink()}, which is not there"
            ) from error
        raise UserError(f"{path} does not exist; it should be {what}") from error
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise UserError(f"{path} cannot be read as {what}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        kind = next((name for name, test in _KINDS.items() if test(mode)), "no file")
        raise UserError(f"{path} should be {what}, but is {kind}")
    if is_of_kernel(path):
        raise UserError(f"{path} should be {what}, but leads into /{path.resolve().parts[1]}, which holds no such file")
    if is_lfs_pointer(path):
        raise UserError(f"{path} should be {what}, but git-lfs left a pointer in its place; fetch it: git lfs pull")
    return path


_KINDS = {
    "a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR,
    "a disk": stat.S_ISBLK,
}  # fmt: skip
_LFS = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a regular file is the pointer that a clone without git-lfs has in place of a large file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def check_file_name(name: object, where: str) -> str:
    """Return the name of a file beside the one that names it. where: names that file and its field, for the message.

    Raises UserError for anything but a plain file name: a path (`../x`, `/x`) would lead elsewhere.
    """
    is_plain = isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\x00-\x1f\x7f]", name)
    if not is_plain or len(os.fsencode(plain(str(name)))) > LONGEST_NAME:
        raise UserError(
            f"{where} must be the name of a file beside it, of at most {LONGEST_NAME} bytes and without a folder, "
            f"got {quote(name)}"
        )
    return str(name)


class _RepeatedKey(ValueError):
    """A key that occurs twice in an object."""


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _RepeatedKey(f"the key {quote(repeated)} occurs twice in an object")
    return value


unique_decoder = json.JSONDecoder(object_pairs_hook=_refuse_repeated)  # refuses a key that occurs twice in an object


def parse_json(text: str, unique_keys: bool = False) -> Any:
    """Parse JSON from elsewhere. unique_keys: refuse a key that occurs twice in an object, instead of reading the last.

    Raises ValueError that says why it is refused: no JSON, nested deeper than DEPTH, a number of thousands of digits,
    half of a surrogate pair (`"\\ud800"`), which could not be written again.
    """
    try:
        value = unique_decoder.decode(text) if unique_keys else json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    except (json.JSONDecodeError, _RepeatedKey):
        raise
    except ValueError:  # Python's limit on the digits of an integer
        raise ValueError("it holds a number of thousands of digits") from None
    check_json(value, text)
    return value


def check_json(value: Any, text: str) -> None:
    """Raises ValueError for what `parse_json` refuses of JSON that can be decoded. text: that `value` comes from."""
    _refuse_depth(value)
    if _SURROGATE.search(text) and _SURROGATE_VALUE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half of a surrogate pair, which is no character")


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, (dict, list))
        for inner in (outer.values() if isinstance(outer, dict) else outer)
        if isinstance(inner, (dict, list))
    ]:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")


def read_text(path: Path, what: str, most: float = math.inf) -> str:
    """Read a text file in UTF-8 (a byte order mark is dropped). most: the bytes that it may have.

    Raises UserError as `require_file` does, or if it is larger.
    """
    path = require_file(path, what)
    try:
        if (size := path.stat().st_size) > most:
            raise UserError(f"{path} cannot be read as {what}: it takes {size} bytes, and at most {most} are read")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as {what}: it is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as {what}: {error.strerror}") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read the JSON object in a file. what: the kind of file, for messages, as in `a manifest`.

    Raises UserError if the file does not exist or holds something else.
    """
    try:
        content = parse_json(read_text(path, what, LARGEST_JSON))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read as {what}: it holds a {type(content).__name__}, not an object")
    return content


def cached_sha256(path: Path) -> str:
    """sha256 of a file, cached for files of 16 MiB or more by path, size, inode and times.

    Its time of change (ctime) is among them, which no program can set back. Raises OSError if it cannot be read.
    """
    path, started = Path(path).resolve(), time.time_ns()
    signature = _signature(path)
    if signature[0] < SMALL:
        return _sha256(path)
    remembered = _read()
    if remembered.get(str(path), [None])[:-1] == signature:
        return remembered[str(path)][-1]
    digest = _sha256(path)
    if _signature(path) == signature and started - signature[-1] > SETTLED_NS:
        _remember(str(path), [*signature, digest])
    return digest


def cache_file() -> Path:
    """The cache file of the digests."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches) / "robustmerge" / "digests.json"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(path: Path) -> list[int]:
    """Size in bytes, inode, and the times of the last writing and the last change in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read() -> dict[str, list]:
    """Read the cache: path -> signature and digest; empty if it cannot be read."""
    try:
        read = parse_json(cache_file().read_text())
        return {path: entry for path, entry in read.items() if isinstance(entry, list) and _is_digest(entry[-1:])}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_digest(last: list) -> bool:
    return bool(last) and isinstance(last[0], str) and len(last[0]) == 64


def _remember(path: str, entry: list) -> None:
    """Add one file to the cache and drop those that no longer exist; no-op if it cannot be written."""
    with contextlib.suppress(OSError):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        kept = {other: digest for other, digest in _read().items() if os.path.exists(other)}
        write_atomically(cache_file(), json.dumps(kept | {path: entry}, indent=1, sort_keys=True) + "\n")
