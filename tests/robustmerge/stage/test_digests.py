"""Cached digests of large files: never a wrong one, whatever happens to the file or the cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from robustmerge.stage import files
from robustmerge.stage.address import address_foreign
from robustmerge.stage.files import cache_file, cached_sha256


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were really read; files of 10 bytes are large, and settled at once."""
    names: list[str] = []
    sha256 = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda path: (names.append(path.name), sha256(path))[1])
    monkeypatch.setattr(files, "SMALL", 10)
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_large_file_is_read_once_and_a_small_one_every_time(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "large").write_bytes(b"0123456789")
    (tmp_path / "base" / "small").write_bytes(b"012345678")
    (tmp_path / "link").symlink_to(tmp_path / "base" / "large")
    first = address_foreign(tmp_path / "base")
    assert first.identity["files"] == {"large": [10, sha256(b"0123456789")], "small": [9, sha256(b"012345678")]}
    assert address_foreign(tmp_path / "base") == first
    assert cached_sha256(tmp_path / "link") == sha256(b"0123456789")
    assert read == ["large", "small", "small"]


def test_a_changed_file_is_read_again_even_if_its_size_and_time_are_set_back(tmp_path: Path, read: list[str]) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"0123456789")
    before = file.stat()
    assert cached_sha256(file) == sha256(b"0123456789")
    for change in (b"9876543210", b"more than before"):
        last = file.stat().st_ctime_ns
        while file.stat().st_ctime_ns == last:  # the clock of a file system ticks every few milliseconds
            file.write_bytes(change)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert cached_sha256(file) == sha256(change)
    assert cached_sha256(file) == sha256(change)
    assert len(read) == 3
    other = tmp_path / "other"
    other.write_bytes(b"another file of this name")
    other.replace(file)
    assert cached_sha256(file) == sha256(b"another file of this name")


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLED_NS", 10**12)
    (tmp_path / "large").write_bytes(b"0123456789")
    cached_sha256(tmp_path / "large")
    assert not cache_file().exists()


@pytest.mark.parametrize("damage", ["{", "[]", '"text"', '{"PATH": 3}', '{"PATH": []}', '{"PATH": [10, null]}'])
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, read: list[str], damage: str) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"0123456789")
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(damage.replace("PATH", str(file)))
    assert cached_sha256(file) == cached_sha256(file) == sha256(b"0123456789")
    assert read == ["large"]
    assert list(json.loads(cache_file().read_text())) == [str(file)]


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    (tmp_path / "large").write_bytes(b"0123456789")
    assert cached_sha256(tmp_path / "large") == cached_sha256(tmp_path / "large") == sha256(b"0123456789")
    assert read == ["large", "large"]


def test_files_that_are_gone_are_forgotten(tmp_path: Path, read: list[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"0123456789")
        cached_sha256(tmp_path / name)
    (tmp_path / "one").unlink()
    (tmp_path / "two").write_bytes(b"9876543210")
    cached_sha256(tmp_path / "two")
    assert list(json.loads(cache_file().read_text())) == [str(tmp_path / "two")]
