"""Where the pictures of question files lie: in a folder, or in an archive that stands in the folder's place.

A path is followed part by part. A part may be written in another case, or be one of the names that a folder goes by
(FOLDERS); `val2014.zip` or `val2014.tar` may stand for the folder `val2014`: only those of its pictures that are asked
about are taken out, one by one. Where they are written follows from the question, never from the archive.
"""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from robustmerge.stage.files import require_file
from robustmerge.stage.pictures import PictureError
from robustmerge.stage.settings import UserError, first_few

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
        """Raises PictureError that says why the bytes cannot be had."""
        if self.size > LARGEST_PICTURE:
            raise PictureError(f"{self} has {self.size} bytes; a picture may have {LARGEST_PICTURE}")
        try:
            data = self._read(require_file(Path(self.path), "a picture"))
        except UserError as error:
            raise PictureError(str(error)) from error
        except Exception as error:  # zipfile and its decompressors raise errors of their own, RuntimeError if encrypted
            raise PictureError(f"cannot read {self}: {error or type(error).__name__}") from error
        if len(data) != self.size:
            raise PictureError(f"cannot read {self}: it has {len(data)} bytes where {self.size} should be")
        return data

    def _read(self, path: Path) -> bytes:
        if self.member and path.name.casefold().endswith(".zip"):
            with _open_zip(self.path, path.stat().st_mtime_ns).open(self.member) as member:
                return member.read(self.size + 1)
        with open(path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if self.member else self.size + 1)


def find_place(root: Path, name: str) -> Place:
    """Find the picture that a question names. name: its path from `root`, which does not lead out of it.

    Raises UserError that says what is missing, or what is there instead.
    """
    parts = Path(name).parts
    exact = root / name
    if _is_file(exact):
        return _file_place(exact)
    refused: list[UserError] = []
    for prefix in PREFIXES:
        for start in _follow(root, Path(prefix).parts):
            for found in _search(start, parts):
                if isinstance(found, Place):
                    return found
                refused.append(found)
    if refused:
        raise refused[0]
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


def _search(folder: Path, parts: Sequence[str]) -> Iterator[Place | UserError]:
    """Yield the places that a path from a folder may mean, the likeliest first, and what could not be looked into."""
    first, *rest = parts
    for name in _spell(first):
        if name == "." and rest:
            yield from _search(folder, rest)
        elif not rest:
            yield from _search_file(folder, name)
        else:
            for entry in _find_entries(folder, name):
                if (folder / entry).is_dir():
                    yield from _search(folder / entry, rest)
            for suffix in (*ARCHIVES, *COMPRESSED):
                for entry in _find_entries(folder, name + suffix):
                    if (folder / entry).is_file():
                        yield from _search_archive(folder / entry, first, rest)


def _search_file(folder: Path, name: str) -> Iterator[Place | UserError]:
    """Yield the file of a folder with this name, in any case if only one matches; a UserError if several do."""
    files = [entry for entry in _find_entries(folder, name) if (folder / entry).is_file()]
    if len(files) == 1 or name in files:
        yield _file_place(folder / files[0])
    elif files:
        yield UserError(f"{folder / name} may be any of {', '.join(files)}: name one as it is written")


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
    """The entries of a folder with this name in any case, the exact spelling first."""
    try:
        entries = _list_entries(folder, folder.stat().st_mtime_ns).get(_fold(name), ())
    except OSError:
        return ()
    return sorted(entries, key=lambda entry: entry != name)


@lru_cache(maxsize=1024)
def _list_entries(folder: Path, version: int) -> dict[str, list[str]]:
    """The entries of a version of a folder by their folded names."""
    entries: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        entries.setdefault(_fold(name), []).append(name)
    return entries


def _fold(name: str) -> str:
    """A name without case; a letter with its accent is one character, which macOS writes as two."""
    return unicodedata.normalize("NFC", name.casefold())


# --- archives ------------------------------------------------------------------------------------------------------


def _search_archive(path: Path, name: str, rest: Sequence[str]) -> Iterator[Place | UserError]:
    """Yield the member of an archive that stands for the folder `name`; its own folders may be called otherwise."""
    if path.name.casefold().endswith(COMPRESSED):
        yield UserError(f"{path} is compressed as a whole, so that no picture can be taken out alone: unpack it there")
        return
    members = _list_members(str(path), path.stat().st_mtime_ns)
    if isinstance(members, UserError):
        yield members
        return
    end = "/".join(rest)
    of_this_name = [top for top in members.second if _fold(top).endswith(f"/{_fold(name)}/")]
    for tops in ([""], [f"{name}/"], members.first, of_this_name, members.second):
        found = {place.member: place for top in tops if (place := members.get(top + end))}
        if len(found) > 1:
            yield UserError(f"{path} has {end} in several folders: {', '.join(first_few(list(found)))}; unpack it")
        yield from list(found.values())[: len(found) == 1]
        if found:
            return


class _Members(NamedTuple):
    """The files in an archive, by name, and by the folded name where one file has it.

    first, second: its topmost folders, and those in them, with a slash at the end.
    """

    named: dict[str, Place]
    folded: dict[str, Place]
    first: list[str]
    second: list[str]

    def get(self, name: str) -> Place | None:
        return self.named.get(name) or self.folded.get(_fold(name))


@lru_cache(maxsize=256)
def _list_members(path: str, version: int) -> _Members | UserError:
    """The files in a version of an archive, or that it is damaged, which may take a while to find out."""
    try:
        found = list(_list_zip(path, version) if path.casefold().endswith(".zip") else _list_tar(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError, tarfile.TarError, EOFError, ValueError) as error:
        return UserError(f"{path} cannot be read as an archive of pictures: {error}")
    named = {place.member.removeprefix("./"): place for place in found}
    spellings = Counter(map(_fold, named))
    folded = {_fold(name): place for name, place in named.items() if spellings[_fold(name)] == 1}
    first, second = (
        sorted({"/".join(name.split("/")[:depth]) + "/" for name in named if name.count("/") >= depth})
        for depth in (1, 2)
    )
    return _Members(named, folded, first, second)


def _list_zip(path: str, version: int) -> Iterator[Place]:
    for one in _open_zip(path, version).infolist():
        if not one.is_dir():
            yield Place(path, one.file_size, one.filename)


def _list_tar(path: str) -> Iterator[Place]:
    with tarfile.open(path, "r:") as archive:
        for one in archive:
            if one.issparse():
                raise tarfile.TarError(f"{one.name} is stored without its zeros; unpack the archive")
            if one.isreg():  # never a link
                yield Place(path, one.size, one.name, one.offset_data)


@lru_cache(maxsize=64)
def _open_zip(path: str, version: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
