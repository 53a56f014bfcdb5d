"""The same experts and method are the same bytes, however they are merged.

Order of experts and modules, file format, number of workers, hash seed of the process; every method in `configs/merge`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustmerge.algebra import merge_models
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.delta import WEIGHTS as DELTAS
from robustmerge.formats.tensors import TensorFile
from robustmerge.merging import merge_folders, write_merged
from robustmerge.method import AnyMethod, Method, list_methods, read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, REPOSITORY, write_expert

SHAPES = {"layers.0.q": (20, 24), "layers.0.v": (24, 16), "layers.1.q": (20, 24), "layers.1.v": (24, 16)}


def methods() -> dict[str, AnyMethod]:
    """Every method file, and the element-wise ones on dense updates over the whole model too."""
    found = {name: read_method(name) for name in list_methods()}
    names = ("dare", "dare_ties", "ties", "pcb", "breadcrumbs", "della", "sce")
    dense = {f"{name}_delta": read_method(name, space="delta", prune__scope="model") for name in names}
    return found | dense


METHODS = methods()


def draw(ranks: dict[str, int]) -> dict[str, dict[str, LoraPair]]:
    """Experts of uniform values, as A is initialised: no rank row is much smaller than the others."""
    source = torch.Generator().manual_seed(5)

    def values(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=source) * 2 - 1

    return {
        name: {m: LoraPair(values(rank, d_in), values(d_out, rank)) for m, (d_out, d_in) in SHAPES.items()}
        for name, rank in ranks.items()
    }


@pytest.fixture(scope="module")
def experts() -> dict[str, dict[str, LoraPair]]:
    return draw(dict.fromkeys("abcd", 3))


@pytest.fixture(scope="module")
def folders(experts: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {name: write_expert(root / name, modules) for name, modules in experts.items()}


@pytest.fixture(scope="module")
def merged(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every method's merge, by one worker."""
    return merge_all(folders, tmp_path_factory.mktemp("merged"))


def merge_all(folders: dict[str, Path], root: Path, workers: int = 1) -> Path:
    for name, method in METHODS.items():
        merge_folders(folders, method, root / name, workers, **QUIET)
    return root


def bytes_of(root: Path) -> dict[str, bytes]:
    """Tensors, configurations and cards; the manifest has times and versions."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_every_method_writes_tensors_a_configuration_and_a_card(merged: Path) -> None:
    for name in METHODS:
        files = {Path(file).name for file in bytes_of(merged / name)}
        dense = name.endswith("_delta")
        assert files == {"README.md"} | (
            {"delta.safetensors", "delta_config.json"}
            if dense
            else {"adapter_model.safetensors", "adapter_config.json"}
        )


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_change_a_byte(
    workers: int, folders: dict[str, Path], merged: Path, tmp_path: Path
) -> None:
    assert bytes_of(merge_all(folders, tmp_path, workers)) == bytes_of(merged)


def test_the_order_of_experts_and_modules_and_the_kind_of_file_do_not_change_a_byte(
    experts: dict, merged: Path, tmp_path: Path
) -> None:
    back = {
        name: write_expert(tmp_path / "experts" / name, dict(reversed(experts[name].items())), bin_file=True)
        for name in reversed(experts)
    }
    assert bytes_of(merge_all(back, tmp_path / "merged")) == bytes_of(merged)


def test_the_hash_seed_of_the_process_does_not_change_a_byte(
    folders: dict[str, Path], merged: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.robustmerge.test_merge_bytes import merge_all;"
        "merge_all({Path(path).name: Path(path) for path in sys.argv[2:]}, Path(sys.argv[1]))"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", program, tmp_path, *folders.values()],
        cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": other}, check=True, capture_output=True,
    )  # fmt: skip
    assert bytes_of(tmp_path) == bytes_of(merged)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if isinstance(method, Method)])
def test_folders_merge_to_what_models_in_memory_do(name: str, experts: dict, merged: Path) -> None:
    updates = merge_models(experts, METHODS[name])
    if name.endswith("_delta"):
        file = TensorFile(merged / name / DELTAS)
        assert all(torch.equal(file.get(f"add.{module}.weight"), update) for module, update in updates.items())
        return
    adapter = open_adapter(merged / name)
    for module, update in updates.items():
        pair = adapter.pair(module)
        assert torch.equal(pair.A, update.A)
        assert torch.equal(pair.B, update.B)


@pytest.mark.parametrize("name", METHODS)
def test_experts_of_different_ranks_merge_where_the_space_allows_it_and_are_refused_elsewhere(
    name: str, tmp_path: Path
) -> None:
    method = METHODS[name]
    folders = {
        expert: write_expert(tmp_path / expert, pairs) for expert, pairs in draw({"a": 2, "b": 1, "c": 2}).items()
    }
    if isinstance(method, Method) and method.needs_equal_ranks:
        with pytest.raises(UserError, match="expert 'b' has rank 1, the others 2"):
            write_merged(tmp_path / "merged", method, folders, **QUIET)
        assert not (tmp_path / "merged").exists()
    else:
        assert write_merged(tmp_path / "merged", method, folders, **QUIET)["modules"] == len(SHAPES)
