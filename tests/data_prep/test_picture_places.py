"""Where pictures are found: in folders of several names, and in archives that stand in a folder's place."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.picture_places import find_place
from robustmerge.stage.settings import UserError

NAME = "COCO2014/val2014/COCO_val2014_000000000042.jpg"


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "place",
    [
        NAME,
        f"datasets/{NAME}",
        NAME.lower(),
        NAME.upper(),
        NAME.replace("COCO2014", "coco"),
        NAME.removeprefix("COCO2014/"),
    ],
)
def test_a_picture_is_found_in_every_spelling_of_its_folders(tmp_path, place):
    write_file(tmp_path / place, b"here")
    found = find_place(tmp_path, NAME)
    assert (found.read(), found.size) == (b"here", 4)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("archive", ["COCO2014/val2014", "val2014", "coco/VAL2014", "datasets/COCO2014/val2014"])
@pytest.mark.parametrize("top", ["", "val2014/", "./", "anything/val2014/"])
def test_an_archive_may_stand_in_the_place_of_a_folder(tmp_path, write, archive, top):
    suffix = ".zip" if write is write_zip else ".tar"
    members = {f"{top}COCO_val2014_0000000000{number}.jpg": b"%d" % number for number in (41, 42, 43)}
    write(tmp_path / (archive + suffix), members)
    assert find_place(tmp_path, NAME).read() == b"42"


def test_a_folder_comes_before_an_archive_and_the_exact_name_before_another(tmp_path):
    write_zip(tmp_path / "coco2014/val2014.zip", {Path(NAME).name: b"packed"})
    write_file(tmp_path / NAME.lower(), b"lower")
    assert find_place(tmp_path, NAME).read() == b"lower"
    write_file(tmp_path / NAME, b"exact")
    assert find_place(tmp_path, NAME).read() == b"exact"


def test_archives_within_the_folder_of_a_class_are_looked_into(tmp_path):
    write_tar(tmp_path / "ImageNet/train/n01.tar", {"n01_7.JPEG": b"seven"})
    assert find_place(tmp_path, "ImageNet/train/n01/n01_7.JPEG").read() == b"seven"


def test_files_that_differ_in_case_alone_are_found_by_their_exact_names_only(tmp_path):
    write_zip(tmp_path / "a.zip", {"x.png": b"small", "X.png": b"large"})
    assert (find_place(tmp_path, "a/x.png").read(), find_place(tmp_path, "a/X.png").read()) == (b"small", b"large")
    with pytest.raises(UserError, match="a/x.PNG does not exist"):
        find_place(tmp_path, "a/x.PNG")


def test_a_link_in_an_archive_is_no_picture(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("x.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UserError, match="a/x.png does not exist"):
        find_place(tmp_path, "a/x.png")


def test_what_has_to_be_unpacked_first_is_said(tmp_path):
    write_tar(tmp_path / "a.tar.gz", {"x.png": b"x"}, "w:gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz is compressed as a whole.* unpack it"):
        find_place(tmp_path, "a/x.png")


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_damaged_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match=f"{name} cannot be read as an archive of pictures"):
        find_place(tmp_path, "a/x.png")


def test_a_picture_that_comes_later_is_found_without_a_new_start(tmp_path):
    (tmp_path / "datasets").mkdir()
    with pytest.raises(UserError, match="does not exist"):
        find_place(tmp_path, "a/x.png")
    write_file(tmp_path / "datasets/A/x.png", b"x")
    assert find_place(tmp_path, "a/x.png").read() == b"x"


def test_a_member_of_gigabytes_is_not_taken_out(tmp_path, monkeypatch):
    write_zip(tmp_path / "a.zip", {"x.png": bytes(2000)})
    monkeypatch.setattr("data_prep.picture_places.LARGEST_PICTURE", 1000)
    with pytest.raises(OSError, match="has 2000 bytes; a picture may have 1000"):
        find_place(tmp_path, "a/x.png").read()
