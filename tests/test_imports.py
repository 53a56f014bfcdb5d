"""Who may import whom: the packages stay apart, and planning stays light. Needs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustmerge.runs import REPOSITORY

OURS = {"robustmerge", "llava_ext", "eval", "data_prep", "scripts"}
SHARED = {"robustmerge.records", "robustmerge.runs", "robustmerge.settings", "robustmerge.prompts"}
ALLOWED = {
    "robustmerge": {"robustmerge"},
    "llava_ext": {"llava_ext", "robustmerge.adapter", "robustmerge.deltas", "robustmerge.tensor_files"} | SHARED,
    "eval": {"eval"} | SHARED,
    "data_prep": {"data_prep"} | SHARED,
}
HEAVY = {"torch", "transformers", "peft", "deepspeed", "datasets", "wandb", "matplotlib", "pycocoevalcap"}


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def files_of(package: str) -> list[Path]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package):
    for file in files_of(package):
        for module in imports_of(file):
            if module.split(".")[0] in OURS:
                assert any(module == name or module.startswith(name + ".") for name in ALLOWED[package]), (file, module)
            assert module.split(".")[0] not in ("hydra", "omegaconf"), (file, module)
            assert module != "wandb" or file.name == "wandb_log.py", file


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_package_file_is_empty(package):
    for file in (REPOSITORY / package).rglob("__init__.py"):
        assert not file.read_text()


@pytest.mark.parametrize("module", ["steps", "answers", "asking", "comparing", "general_line", "summary"])
def test_planning_loads_no_heavy_library(module):
    code = f"import scripts.{module}, sys; print(*({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
