"""Files that are there whole or not at all: written beside their name, brought to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

BESIDE = ".part"  # ending of a file that is being written


class WholeFile:
    """A file that appears under its name when the block ends well; if it does not, nothing of it stays.

    file: what to write to, inside the block. alone: no other process writes this file, so what is left beside it is
    of runs that were killed, and is removed first. `finish` and `publish` by hand are for several files that are to
    appear together.
    """

    file: BinaryIO

    def __init__(self, path: Path, alone: bool = False):
        self.path, self._alone = path, alone
        self._beside = path.with_name(f".{path.name}.{os.getpid()}{BESIDE}")

    def __enter__(self) -> Self:
        if self._alone:
            for left in left_beside(self.path):
                left.unlink()
        self.file = open(self._beside, "wb")  # noqa: SIM115  (closed in finish or drop)
        return self

    def finish(self) -> None:
        """Bring all bytes to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def publish(self) -> None:
        """Give the finished file its name."""
        os.replace(self._beside, self.path)

    def drop(self) -> None:
        """Leave nothing of an unpublished file."""
        try:
            self.file.close()
        finally:
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


def left_beside(path: Path) -> Iterator[Path]:
    """What was written of a file, by whatever process, and is not published."""
    return path.parent.glob(f".{path.name}.*{BESIDE}")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: the file is there whole or not at all."""
    with WholeFile(Path(path)) as whole:
        whole.file.write(content.encode() if isinstance(content, str) else content)
