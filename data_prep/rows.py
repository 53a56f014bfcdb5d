"""The rows of a task's splits, from question files or an owner's release, and the pictures that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from data_prep.picture_places import find_place
from data_prep.settings import Release, TaskData, load_release
from robustmerge.stage.files import expand
from robustmerge.stage.json_stream import Element, iterate_records
from robustmerge.stage.records import find_picture_name
from robustmerge.stage.settings import UserError


def iterate_rows(settings: TaskData, split: str, files: Sequence[Path]) -> Iterator[Element]:
    """Yield the rows of a split as records of a question file, each with its place. files: those of the split.

    Raises UserError, perhaps in the middle, for a file that cannot be read.
    """
    return _iterate(settings.release_in_use, settings.splits[split], tuple(files))


def find_image_root(settings: TaskData, files: Sequence[Path]) -> Path:
    """The folder that the pictures of a split are relative to."""
    folder = settings.images
    if folder is None and settings.release_in_use is not None:
        folder = settings.collection
    return files[0].parent if folder is None else expand(folder)


def list_pictures(settings: TaskData) -> dict[str, int]:
    """Every picture that the rows name, with its size in bytes (-1: missing), for the task's identity.

    Sizes and not digests: they are read at every start, and a collection may hold a hundred thousand pictures.
    """
    sizes = {}
    inputs = settings.input_files
    for split, name in settings.splits.items():
        files = inputs[split]
        versions = tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files if file.exists()))
        root = find_image_root(settings, files)
        for picture in _list_names(settings.release_in_use, name, tuple(files), versions):
            sizes[picture] = _size_of(root, picture)
    return sizes


def _iterate(release: Release | None, split: str, files: tuple[Path, ...]) -> Iterator[Element]:
    if release is not None:
        return load_release(release.name).convert(split, *files)
    return iterate_records(files[0], "a question file")


@lru_cache(maxsize=64)
def _list_names(
    release: Release | None, split: str, files: tuple[Path, ...], versions: tuple[tuple[int, int], ...]
) -> tuple[str, ...]:
    """The pictures that a version of the files names; cached for a whole sweep, as a million rows take a minute."""
    names = (find_picture_name(row.value) for row in _iterate(release, split, files))
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _size_of(root: Path, picture: str) -> int:
    try:
        return find_place(root, picture).size
    except (OSError, UserError, ValueError):
        return -1
