"""An installed package is the merge library alone, and merges to the bytes of the checkout. Needs no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustmerge.merging import merge_folders
from robustmerge.stage.address import REPOSITORY
from tests.merge_cases import QUIET, random_experts, write_expert

PACKAGES = ("robustmerge", "eval", "data_prep", "llava_ext", "clip_ext", "pipeline", "scripts", "tests", "configs")
PROGRAM = """
import sys
from robustmerge.cli.program import main
main(["merge", "ties", "a", "b", "-o", "ties"])
main(["merge", "tsv_m", "a", "b", "-o", "tsv_m"])
main(["methods", "ties"])
names = {name.partition(".")[0] for name in sys.modules}
others = "hydra omegaconf transformers peft datasets matplotlib wandb accelerate pipeline eval data_prep llava_ext"
others += " clip_ext"
print("loaded:", *sorted(names & set(others.split())), sys.modules["robustmerge"].__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout: a build leaves files beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(
            REPOSITORY / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__", "golden")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "copy" / name)
    run_pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "copy")
    (built,) = folder.glob("*.whl")
    return built


def run_pip(command: str, *words: object) -> None:
    start = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*start, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wheel_holds_the_library_with_its_methods_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        metadata = {
            name.rpartition("/")[2]: file.read(name).decode() for name in file.namelist() if "dist-info" in name
        }
    sources = (REPOSITORY / "robustmerge").rglob("*.py")
    expected = [path.relative_to(REPOSITORY).as_posix() for path in sources]
    expected += [f"robustmerge/methods/{path.name}" for path in (REPOSITORY / "configs" / "merge").glob("*.yaml")]
    assert sorted(names) == sorted(expected)
    assert "robustmerge = robustmerge.cli.program:main" in metadata["entry_points.txt"]
    needs = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata["METADATA"], flags=re.M)
    assert sorted(needs) == ["huggingface-hub", "numpy", "pyyaml", "safetensors", "torch", "tqdm"]


def test_an_installed_package_merges_to_the_bytes_of_the_checkout_and_loads_nothing_else(wheel: Path, tmp_path) -> None:
    run_pip("install", "--target", tmp_path / "site", wheel)
    there = tmp_path / "there"
    experts = [write_expert(there / name, pairs) for name, pairs in random_experts("ab").items()]
    (there / ".git").mkdir()  # somebody else's checkout
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=there,
        env={**environment, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"loaded: {tmp_path / 'site' / 'robustmerge' / '__init__.py'}\n" in done.stdout
    assert 'PeftModel.from_pretrained(base_model, "tsv_m")' in done.stdout
    for method in ("ties", "tsv_m"):
        here = merge_folders(experts, method, tmp_path / method, **QUIET)
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            assert (there / method / name).read_bytes() == (here / name).read_bytes()
        installed, checkout = (
            json.loads((folder / method / "manifest.json").read_text()) for folder in (there, tmp_path)
        )
        assert installed["identity"] == checkout["identity"]
        assert installed["record"]["commit"] is None and installed["record"]["dirty"] is None
        assert installed["record"]["versions"]["robustmerge"] == "0.1.0"
