"""The floor plan holds: who may import whom, no circle, empty package files, light planning. Needs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from robustmerge.stage.address import REPOSITORY

MAY_IMPORT = {
    "robustmerge": ("robustmerge",),
    "eval": ("eval", "robustmerge.stage"),
    "data_prep": ("data_prep", "robustmerge.stage"),
    "llava_ext": ("llava_ext", "robustmerge.stage", "robustmerge.formats"),
    "clip_ext": ("clip_ext", "llava_ext", "robustmerge.stage", "robustmerge.formats"),
    "pipeline": ("pipeline", "robustmerge", "eval", "data_prep", "llava_ext", "clip_ext"),
    "scripts": ("pipeline", "scripts"),
    "robustmerge/stage": ("robustmerge.stage",),
    "robustmerge/hub": ("robustmerge.hub", "robustmerge.stage"),
}
HEAVY = {"torch", "transformers", "peft", "deepspeed", "datasets", "wandb", "matplotlib", "pycocoevalcap"}


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from package import module` is that module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(package: str) -> dict[str, Path]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    named = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in files}
    assert named, package
    return named


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    for file in modules_of(package).values():
        for module in imports_of(file):
            assert not (package == "robustmerge/stage" and module == "torch"), file
            if module.split(".")[0] in MAY_IMPORT:
                assert module.startswith(MAY_IMPORT[package]), (file, module)
            assert package == "pipeline" or module.split(".")[0] not in ("hydra", "omegaconf"), (file, module)
            assert module != "wandb" or file.name.startswith("wandb_"), file


def test_no_module_imports_itself_in_a_circle():
    modules = {name: file for package in MAY_IMPORT for name, file in modules_of(package).items()}
    arrows = {name: {other for other in imports_of(file) if other in modules} for name, file in modules.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_file_is_empty():
    for package in MAY_IMPORT:
        for file in (REPOSITORY / package).rglob("__init__.py"):
            assert not file.read_text(), file


def test_an_entry_point_is_short():
    for file in (file for file in (REPOSITORY / "scripts").iterdir() if file.is_file()):
        assert len(file.read_text().splitlines()) <= 40, file


@pytest.mark.parametrize(
    "module",
    ["plan", "child", "stages.train", "stages.merge", "stages.predict", "tools.compare", "tools.ask", "wandb_log"],
)
def test_planning_loads_no_heavy_library(module):
    heavy = HEAVY | ({"hydra"} if module == "child" else set())
    code = f"import pipeline.{module}, sys; print(*({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
