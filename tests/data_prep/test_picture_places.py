"""Where pictures are found: in folders of several names, and in archives that stand in a folder's place."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from data_prep.picture_places import find_place
from robustmerge.stage.pictures import PictureError
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


def test_a_picture_whose_place_in_an_archive_is_not_certain_is_refused(tmp_path):
    write_zip(tmp_path / "a.zip", {"train/1/x.png": b"train", "test/1/x.png": b"test", "b/train/y.png": b"y"})
    with pytest.raises(UserError, match=r"a\.zip has 1/x.png in several folders: test/1/x.png, train/1/x.png"):
        find_place(tmp_path, "a/1/x.png")
    write_zip(tmp_path / "val.zip", {"b/val/x.png": b"val", "b/train/x.png": b"train"})
    assert find_place(tmp_path, "val/x.png").read() == b"val"


def test_files_of_a_folder_that_differ_in_case_alone_are_not_guessed(tmp_path):
    for name in ("x.PNG", "X.png"):
        write_file(tmp_path / name, name.encode())
    with pytest.raises(UserError, match=r"x\.png may be any of X\.png, x\.PNG"):
        find_place(tmp_path, "x.png")
    assert find_place(tmp_path, "x.PNG").read() == b"x.PNG"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_found_however_a_system_writes_them(tmp_path, form):
    name = unicodedata.normalize(form, "café.png")
    write_file(tmp_path / name, b"file")
    write_zip(tmp_path / "a.zip", {name: b"packed"})
    assert find_place(tmp_path, "caf\u00e9.png").read() == b"file"
    assert find_place(tmp_path, "a/cafe\u0301.png").read() == b"packed"


@pytest.mark.parametrize("left", ["COCO2014.zip", "COCO2014.tar", "COCO2014.tar.gz"])
def test_an_archive_that_cannot_be_read_hides_no_folder_of_another_name(tmp_path, left):
    write_file(tmp_path / left, b"a download that was broken off")
    write_file(tmp_path / "mscoco/x.png", b"here")
    assert find_place(tmp_path, "COCO2014/x.png").read() == b"here"


def test_what_is_called_like_an_archive_and_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.zip")  # opening it would wait for ever
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(UserError, match=r"a/x\.png does not exist"):
        find_place(tmp_path, "a/x.png")


def test_a_tar_that_leaves_zeros_out_is_to_be_unpacked(tmp_path):
    with open(tmp_path / "x.bmp", "wb") as file:
        file.write(b"a" * 4096)
        file.seek(2**20)
        file.write(b"b")
    subprocess.run(["tar", "-cSf", "a.tar", "x.bmp"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match=r"x\.bmp is stored without its zeros; unpack"):
        find_place(tmp_path, "a/x.bmp")


@pytest.mark.parametrize(
    ("offsets", "value", "problem"),
    [((6, 8), 1, "encrypted"), ((8, 10), 1, "compression method"), ((8, 10), 12, "Invalid"), ((14, 16), 9, "CRC")],
)
def test_a_member_that_cannot_be_unpacked_fails_alone(tmp_path, offsets, value, problem):
    write_zip(tmp_path / "a.zip", {"x.png": b"x" * 99})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for magic, offset in zip((b"PK\3\4", b"PK\1\2"), offsets, strict=True):
        data[data.find(magic) + offset] = value
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(PictureError, match=f"cannot read .*x.png: .*{problem}"):
        find_place(tmp_path, "a/x.png").read()


def test_a_picture_that_changes_after_it_was_found_is_refused(tmp_path):
    write_file(tmp_path / "x.png", b"before")
    place = find_place(tmp_path, "x.png")
    for content in (b"longer than before", b"less"):
        write_file(tmp_path / "x.png", content)
        with pytest.raises(PictureError, match="bytes where 6 should be"):
            place.read()
