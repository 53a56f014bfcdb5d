"""Names of files in files from elsewhere: nothing but a weight file beside the index is read for it, or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from llava_ext.model import load_model
from robustmerge.formats.checkpoint import find_weight_files, open_checkpoint
from robustmerge.formats.full_model import export_model
from robustmerge.hub.pins import Pinned, Repository, parse_repository, pin, storage_folder
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, Tiny, save_expert

TENSORS = Tiny().state_dict()
HOSTILE = [
    "../precious.safetensors", "x/../../precious.safetensors", "{root}/precious.safetensors", "..", ".", "", "a\0b",
    "sub/model.safetensors", "..\\precious.safetensors", "precious", "x" * 5000, 5, None, ["model.safetensors"], {},
]  # fmt: skip
# every reader of an index; root holds the folders base, a and b (experts)
READERS: dict[str, Callable[[Path], object]] = {
    "a merge": lambda root: merge_folders(
        {"a": root / "a", "b": root / "b"},
        read_method("average", out__format="model", out__base=str(root / "base")),
        root / "out",
        **QUIET,
    ),
    "an export": lambda root: export_model(root / "base", root / "a", root / "out"),
    "a link to the base": lambda root: export_model(root / "base", None, root / "out"),
    "a loaded base": lambda root: load_model(root / "base", torch.float32),
}


def write_base(folder: Path, where: dict[str, object], whole: str = "model.safetensors") -> Path:
    """A base of one file, precious.safetensors in the folder above it, and of the index that is given."""
    folder.mkdir(exist_ok=True)
    save_file(TENSORS, folder.parent / "precious.safetensors")
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    for seed, name in enumerate("ab"):
        save_expert(root / name, seed)
    return root


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_names_weight_files_beside_it_and_whatever_else_it_names_is_neither_read_nor_written(
    root: Path, reader: str, whole: str
) -> None:
    for hostile in HOSTILE:
        name = hostile.format(root=root) if isinstance(hostile, str) else hostile
        base = write_base(root / "base", dict.fromkeys(TENSORS, name), whole)
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=r"index\.json: weight_map.* must be "):
            READERS[reader](root)
        assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert not (root / "out").exists() or not list((root / "out").iterdir())
        (base / f"{whole}.index.json").unlink()


def test_an_index_and_its_files_hold_the_same_tensors_once(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file(TENSORS, tmp_path / name)
    torch.save(TENSORS, tmp_path / "pytorch_model-1.bin")
    for where, reason in (
        ({"x": "model-1.safetensors"}, "its index lists 'x', which is in none of its files"),
        ({"x": "model-1.safetensors", "y": "model-2.safetensors"}, "is in model-1.safetensors and again in model-2"),
        ({"x": "model-1.safetensors", "y": "pytorch_model-1.bin"}, "would both be written as model-1.safetensors"),
        ({}, "weight_map must map tensors to files"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        with pytest.raises(UserError, match=reason):
            open_checkpoint(tmp_path)


def test_one_part_of_any_name_is_written_with_its_index(tmp_path: Path) -> None:
    save_expert(tmp_path / "a")
    base = write_base(tmp_path / "base", dict.fromkeys(TENSORS, "model-1-of-1.safetensors"))
    (tmp_path / "precious.safetensors").rename(base / "model-1-of-1.safetensors")
    export_model(base, tmp_path / "a", tmp_path / "out")
    assert set(open_checkpoint(tmp_path / "out").where) == set(TENSORS)
    save_file(TENSORS, base / "model.safetensors")  # transformers takes the whole file, so this is the model
    assert find_weight_files(base) == [base / "model.safetensors"]


@pytest.mark.parametrize("revision", ["../../x", "/x", "x/../y", "x//y", ".x", "x..y", "x/", "x" * 300])
def test_a_revision_is_no_path(revision: str) -> None:
    assert parse_repository(f"user/repo@{revision}") is None
    assert parse_repository("user/..") is None and parse_repository("../repo") is None


def test_a_revision_of_any_branch_or_tag_is_read() -> None:
    for revision in ("main", "v1.0.2", "refs/pr/1", "feature/a-b_c.d", "0" * 40):
        assert parse_repository(f"user/my-repo_1.5@{revision}") == Repository("user/my-repo_1.5", revision)


def test_the_cache_names_a_commit_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: 1 / 0)
    ref = storage_folder("user/repo") / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("../../../precious")
    with pytest.raises(UserError, match="refs/main must be a commit of 40 hexadecimal digits"):
        pin(Repository("user/repo"))
    ref.write_text("0" * 40 + "\n")
    assert pin(Repository("user/repo")) == Pinned("user/repo", "0" * 40)


def test_what_a_link_of_a_base_points_to_is_not_copied_unless_it_is_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    save_expert(tmp_path / "a")
    base = tmp_path / "models--user--base" / "snapshots" / ("0" * 40)
    base.mkdir(parents=True)
    (base.parent.parent / "blobs").mkdir()
    for name, content in {"config.json": b"{}", "model.safetensors": save(TENSORS)}.items():
        (base.parent.parent / "blobs" / f"blob-{name}").write_bytes(content)
        (base / name).symlink_to(Path("../../blobs") / f"blob-{name}")
    export_model(base, tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == b"{}"
    (tmp_path / "private.txt").write_text("private")
    (base / "notes.txt").symlink_to(tmp_path / "private.txt")
    for source in (tmp_path / "a", None):
        with pytest.raises(UserError, match="notes.txt is a link to .*private.txt; it would be copied"):
            export_model(base, source, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_config_that_names_other_weights_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", {})
    (base / "config.json").write_text('{"transformers_weights": "../precious.safetensors"}')
    with pytest.raises(UserError, match="names other weights .transformers_weights '../precious.safetensors'"):
        find_weight_files(base)
