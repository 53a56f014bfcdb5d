"""Small pictures of the fake raw folders: in their folders, or in an archive that stands in the place of one."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

SIZE = (6, 4)


def draw(name: str, size: tuple[int, int] = SIZE) -> bytes:
    """The bytes of a picture, in the format that its name says."""
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG" if name.endswith(".png") else "JPEG")
    return file.getvalue()


def place(folder: Path, names: Iterable[str]) -> None:
    """Write pictures into a folder. names: their paths from it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw(name))


def pack(
    archive: Path,
    names: Iterable[str],
    beside: Iterable[str] = (),
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write pictures into a zip or tar file; a zip file that is there, as two datasets share it, gets them, too.

    beside: names of members that are no pictures; sizes: where not SIZE.
    """
    contents = {name: draw(name, (sizes or {}).get(name, SIZE)) for name in names} | dict.fromkeys(beside, b"text")
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "a") as file:
            there = file.namelist()
            for name in contents:
                if name not in there:
                    file.writestr(name, contents[name])
        return
    with tarfile.open(archive, "w") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
