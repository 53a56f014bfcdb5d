"""Where the pictures of question files lie: in a folder, or in an archive that stands in the folder's place.

A path is followed part by part. A part may be written in another case, or be one of the names that a folder goes by
(FOLDERS); `val2014.zip` or `val2014.tar` may stand for the folder `val2014`: only those of its pictures that are asked
about are taken out, one by one. Where they are written follows from the question, never from the archive.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from robustmerge.stage.files import require_file
from robustmerge.stage.settings import UserError

# The names that folders of pictures go by in published question files, in scripts, and in the owners' archives.
FOLDERS = (
    ("COCO2014", "COCO", "mscoco", "."),
    ("COCO2017", "COCO", "mscoco", "."),
    ("ImageNet", "ImageNet_withlabel", "ILSVRC2012"),
    ("val", "ILSVRC2012_img_val"),
    ("train", "ILSVRC2012_img_train"),
    ("VizWiz", "VizWiz-caption", "VizWiz-Captions"),
    ("Flickr30k", "flickr30k-caption"),
    ("flickr30k-images", "flickr30k_images", "images"),
    ("OCRVQA", "OCR-VQA", "ocr_vqa"),
    ("ImageNet-R", "imagenet-r"),
    ("Screen2words", "Screen2Words", "rico", "combined", "."),
)
PREFIXES = ("", "datasets")  # in which the paths of pictures may start
ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
LARGEST_PICTURE = 2**28  # bytes


class Place(NamedTuple):
    """Where a picture's bytes are. member: its name in an archive, "" for a file; offset: in a tar; size: in bytes."""

    path: str
    size: int
    member: str = ""
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """Raises OSError, or UserError of an archive that cannot be read."""
        if self.size > LARGEST_PICTURE:
            raise OSError(f"{self} has {self.size} bytes; a picture may have {LARGEST_PICTURE}")
        if not self.member:
            return Path(self.path).read_bytes()
        if self.path.casefold().endswith(".zip"):
            try:
                with _open_zip(self.path).open(self.member) as file:
                    return file.read(self.size + 1)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # or encrypted
                raise OSError(f"{self} cannot be taken out of its archive: {error}") from error
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def find_place(root: Path, name: str) -> Place:
    """Find the picture that a question names. name: its path from `root`, which does not lead out of it.

    Raises UserError that says what is missing, or what is there instead.
    """
    parts = Path(name).parts
    exact = root / name
    if _is_file(exact):
        return _file_place(exact)
    for prefix in PREFIXES:
        for start in _follow(root, Path(prefix).parts):
            for place in _search(start, parts):
                return place
    require_file(exact, "a picture")  # says what is there instead
    raise UserError(f"{exact} does not exist; it should be a picture")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def _file_place(path: Path) -> Place:
    require_file(path, "a picture")
    return Place(str(path), path.stat().st_size)


def _search(folder: Path, parts: Sequence[str]) -> Iterator[Place]:
    """Yield the places that a path from a folder may mean, the likeliest first."""
    first, *rest = parts
    for name in _spell(first):
        if name == "." and rest:
            yield from _search(folder, rest)
            continue
        for entry in _find_entries(folder, name):
            path = folder / entry
            if rest and path.is_dir():
                yield from _search(path, rest)
            elif not rest and path.is_file():
                yield _file_place(path)
        for suffix in (*ARCHIVES, *COMPRESSED) if rest else ():
            for entry in _find_entries(folder, name + suffix):
                yield from _search_archive(folder / entry, first, rest)


def _follow(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    for entry in _find_entries(folder, parts[0]):
        if (folder / entry).is_dir():
            yield from _follow(folder / entry, parts[1:])


def _spell(name: str) -> list[str]:
    """The names that a folder goes by, the given one first."""
    others = (group for group in FOLDERS if name.casefold() in map(str.casefold, group))
    return list(dict.fromkeys([name, *(other for group in others for other in group)]))


def _find_entries(folder: Path, name: str) -> Sequence[str]:
    """The entries of a folder that are called so, in any case."""
    try:
        return _list_entries(folder, folder.stat().st_mtime_ns).get(name.casefold(), ())
    except OSError:
        return ()


@lru_cache(maxsize=1024)
def _list_entries(folder: Path, version: int) -> dict[str, list[str]]:
    """The entries of a version of a folder by their lower case."""
    entries: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        entries.setdefault(name.casefold(), []).append(name)
    return entries


# --- archives ------------------------------------------------------------------------------------------------------


def _search_archive(path: Path, name: str, rest: Sequence[str]) -> Iterator[Place]:
    """Yield the member of an archive that stands for the folder `name`; its own folders may be called otherwise."""
    if path.name.casefold().endswith(COMPRESSED):
        raise UserError(f"{path} is compressed as a whole, so that no picture can be taken out alone: unpack it there")
    named, lower, tops = _list_members(str(path), path.stat().st_mtime_ns)
    ends = ("/".join(rest), f"{name}/{'/'.join(rest)}")
    for candidate in (*ends, *(f"{top}/{ends[0]}" for top in tops)):
        if place := named.get(candidate) or lower.get(candidate.casefold()):
            yield place
            return


@lru_cache(maxsize=256)
def _list_members(path: str, version: int) -> tuple[dict[str, Place], dict[str, Place], list[str]]:
    """The files in a version of an archive, by name and by its lower case where one file has it; its topmost folders.

    Raises UserError for a damaged archive.
    """
    try:
        found = list(_list_zip(path) if path.casefold().endswith(".zip") else _list_tar(path))
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an archive of pictures: {error}") from error
    named = {place.member.removeprefix("./"): place for place in found}
    spellings = Counter(name.casefold() for name in named)
    lower = {name.casefold(): place for name, place in named.items() if spellings[name.casefold()] == 1}
    tops = {"/".join(name.split("/")[:depth]) for name in named for depth in (1, 2) if name.count("/") >= depth}
    return named, lower, sorted(tops, key=lambda top: (top.count("/"), top))


def _list_zip(path: str) -> Iterator[Place]:
    for one in _open_zip(path).infolist():
        if not one.is_dir():
            yield Place(path, one.file_size, one.filename)


def _list_tar(path: str) -> Iterator[Place]:
    with tarfile.open(path, "r:") as archive:
        for one in archive:
            if one.isreg():  # never a link
                yield Place(path, one.size, one.name, one.offset_data)


@lru_cache(maxsize=64)
def _open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
