"""ImageNet-R as its owners publish it: renditions of 200 classes, a folder for each, whose names the README lists.

There is no file of questions: the 30,000 pictures are the rows, in the order of their paths. The published test.json
has those that its authors chose, in an order of their own; whether its answers are spelled as here (`great white
shark`) is not known.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from data_prep.origin import Download, Origin
from data_prep.templates import SHORT
from robustmerge.stage.files import read_text
from robustmerge.stage.json_stream import Element
from robustmerge.stage.settings import UserError, first_few

VERSION = 1
ORIGIN = Origin(
    "ImageNet-R",
    "MIT",
    (
        Download(
            "ImageNet-R/README.txt beside the folders of the classes, or beside imagenet-r.tar, which it is in",
            "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            "2.2 GB",
        ),
    ),
    "the text around the names in the README, and which pictures the published file has under which names of classes",
)
FILES = {"test": ("ImageNet-R/README.txt",)}
_CLASS = re.compile(r"^(n\d{8}) (\S+)\s*$", re.MULTILINE)
_PICTURE = re.compile(r"(n\d{8})/([^/.][^/]*)")
_ARCHIVE = "imagenet-r.tar"


def convert(split: str, readme: Path) -> Iterator[Element]:
    """Yield a question for every picture. One of a class without a name has no answer, and is refused as such.

    Raises UserError if a class has no picture.
    """
    names = dict(_CLASS.findall(read_text(readme, "the README of ImageNet-R")))
    root, pictures = _find_pictures(readme.parent)
    if missing := sorted(names.keys() - {wnid for wnid, _ in pictures}):
        shown = ", ".join(first_few([f"{wnid} ({names[wnid]})" for wnid in missing]))
        raise UserError(f"{readme} names classes of which no picture is there: {shown}")
    for wnid, file in pictures:
        path = PurePosixPath(wnid, file)
        record = {
            "question_id": str(path.with_suffix("")),
            "image": f"{root}/{path}",
            "text": f"What is the object in the image?\n{SHORT}",
            "answer": names.get(wnid, "").replace("_", " "),
            "category": path.stem.rpartition("_")[0],  # the kind of rendition
            "details": {"question_id": file, "wnid": wnid},  # the published id is the file's name, which is not unique
        }
        yield Element(str(path), record)


def _find_pictures(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """Where the pictures lie below the raw folder, and the class and the file of each, sorted.

    folder: that of the README. They are in folders in it, or in the owners' archive, in it or in its place.
    """
    if pictures := _list_pictures(path.relative_to(folder).as_posix() for path in folder.glob("n*/*")):
        return "ImageNet-R", pictures
    for root, archive in (("ImageNet-R", folder.with_name(_ARCHIVE)), ("ImageNet-R/imagenet-r", folder / _ARCHIVE)):
        if archive.is_file():
            return root, _list_pictures(_list_members(archive))
    return "ImageNet-R", []


def _list_pictures(paths: Iterable[str]) -> list[tuple[str, str]]:
    ends = (_PICTURE.fullmatch("/".join(PurePosixPath(path).parts[-2:])) for path in paths)
    return sorted({(end[1], end[2]) for end in ends if end})


def _list_members(archive: Path) -> list[str]:
    try:
        with tarfile.open(archive, "r:") as members:
            return [one.name for one in members if one.isreg()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read as an archive of pictures: {error}") from error
