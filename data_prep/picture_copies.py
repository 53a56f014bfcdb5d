"""The copies of a task's pictures in the stage's folder: their names there, and how each is checked and taken.

Pictures are copied, so that editing one later changes nothing that is prepared. Read-only pictures, which nobody edits
in place, are hard-linked where the file system can: `chmod -R a-w` on a large collection saves its size on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from data_prep.picture_places import Place
from robustmerge.stage.files import BESIDE
from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.records import LONGEST_PATH
from robustmerge.stage.text import shorten

LONGEST_PART = 255  # bytes of a file's name


def name_in_stage(root: Path, image: str) -> str:
    """The path of a picture's copy in the stage's folder.

    Raises ValueError if the picture lies outside its root, or the path could not be kept or read again.
    """
    inside = os.path.normpath(os.path.relpath(root / image, root))
    if inside in (os.curdir, os.pardir) or inside.startswith(os.pardir + os.sep):
        raise ValueError(f"{image} lies outside {root}")
    if any(part.startswith(".") and part.endswith(BESIDE) for part in Path(inside).parts):
        raise ValueError(f"{image} has a name of unfinished files (.*{BESIDE}), which are removed; rename it")
    name = Path("images", inside).as_posix()
    if any(len(os.fsencode(part)) > LONGEST_PART for part in Path(inside).parts):
        raise ValueError(f"{shorten(image)} has a name of more than {LONGEST_PART} bytes, which no file may have")
    if len(name) > LONGEST_PATH:
        raise ValueError(f"{image} is too long: {name[:7]} and the path may have {LONGEST_PATH} characters")
    return name


_follow = lru_cache(os.path.realpath)  # of folders, which hold many pictures


def find_link_out(root: Path, place: Place) -> str | None:
    """What a link leads to that leads out of the folder of the pictures; None if there is none."""
    path = Path(place.path)
    target = os.path.realpath(path) if path.is_symlink() else os.path.join(_follow(path.parent), path.name)
    return None if target.startswith(_follow(root) + os.sep) else target


def copy_pictures(folder: Path, pictures: Sequence[tuple[str, Place]]) -> dict[str, tuple[int, int] | str]:
    """Decode pictures and copy them. Returns the size of each in pixels, or why it cannot be used."""
    return {name: _copy_picture(folder / name, place) for name, place in pictures}


def _copy_picture(target: Path, place: Place) -> tuple[int, int] | str:
    with contextlib.suppress(PictureError):  # if it is there already; a crash of the machine may have emptied it
        return read_picture(target).size
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".copy.{os.getpid()}{BESIDE}")
    beside.unlink(missing_ok=True)
    try:
        if not place.member and _link_if_read_only(Path(place.path), beside):
            size = read_picture(Path(place.path)).size
        else:
            data = place.read()  # once: what is decoded is what is written
            size = read_picture(data, f"the picture {place}").size
            beside.write_bytes(data)
        os.replace(beside, target)
        return size
    except PictureError as error:
        return str(error)
    finally:
        beside.unlink(missing_ok=True)


def _link_if_read_only(source: Path, beside: Path) -> bool:
    """Hard-link a file that nobody may write to. Returns whether it is linked."""
    with contextlib.suppress(OSError):  # another file system, or one without links
        if not source.stat().st_mode & 0o222:
            os.link(source.resolve(), beside)
            return True
    return False
