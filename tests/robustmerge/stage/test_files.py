"""Files appear under their name whole or not at all, whatever writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustmerge.formats.tensors import SlotWriter, TensorWriter, header_room
from robustmerge.stage.files import WholeFile, find_unpublished, write_atomically

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7, dtype=torch.int64), "none": torch.ones(0, 4)}
LAYOUT = {name: (x.dtype, x.shape) for name, x in TENSORS.items()}


def write_plain(path: Path, then: Callable[[], None]) -> None:
    with WholeFile(path, alone=True) as whole:
        whole.file.write(b"new")
        then()


def write_in_order(path: Path, then: Callable[[], None]) -> None:
    with TensorWriter(path, header_room(TENSORS)) as writer:
        for name, tensor in TENSORS.items():
            writer.add(name, tensor)
        then()


def write_in_any_order(path: Path, then: Callable[[], None]) -> None:
    with SlotWriter(path, LAYOUT) as writer:
        for name in reversed(TENSORS):
            writer.put(name, TENSORS[name])
        then()


WRITERS = pytest.mark.parametrize("write", [write_plain, write_in_order, write_in_any_order])


@WRITERS
def test_the_name_is_that_of_the_old_file_until_the_new_one_is_whole(write, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def look() -> None:
        assert path.read_bytes() == b"old"
        assert len(list(find_unpublished(path))) == 1

    write(path, look)
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


@WRITERS
def test_an_error_leaves_the_old_file_and_nothing_beside_it(write, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(path, lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"old")]


@WRITERS
def test_what_a_killed_run_left_of_this_file_is_removed_and_of_another_it_stays(write, tmp_path):
    for name in (".file.1.part", ".other.1.part"):
        (tmp_path / name).write_bytes(b"cut")
    write(tmp_path / "file", lambda: None)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.1.part", "file"]


def test_a_small_file_leaves_alone_what_another_process_is_writing(tmp_path):
    """Reports have no lock: two processes may write the same one, and the last wins."""
    (tmp_path / ".file.1.part").write_bytes(b"half")
    write_atomically(tmp_path / "file", "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".file.1.part", "file"]


@pytest.mark.parametrize("write", [write_in_order, write_in_any_order])
def test_tensors_come_back_as_they_were_with_empty_ones_at_the_end_too(write, tmp_path):
    write(tmp_path / "file", lambda: None)
    found = load_file(tmp_path / "file")
    assert {name: (x.dtype, x.shape) for name, x in found.items()} == LAYOUT
    assert all(torch.equal(found[name], x) for name, x in TENSORS.items())


def test_a_header_without_room_or_a_slot_without_its_tensor_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="a header of"), TensorWriter(tmp_path / "file", 8) as writer:
        writer.add("a", TENSORS["a"])
    with pytest.raises(ValueError, match="lacks 2 tensors, as b"), SlotWriter(tmp_path / "file", LAYOUT) as slots:
        slots.put("a", TENSORS["a"])
    assert list(tmp_path.iterdir()) == []
