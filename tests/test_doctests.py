"""Every example in a docstring of the packages is right. Needs nothing."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from robustmerge.stage.address import REPOSITORY

PACKAGES = ("robustmerge", "eval", "data_prep", "llava_ext", "clip_ext", "pipeline")
FILES = [
    file.relative_to(REPOSITORY)
    for package in PACKAGES
    for file in sorted((REPOSITORY / package).rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_examples_of_a_module_are_right(file: Path) -> None:
    failed, tried = doctest.testmod(importlib.import_module(".".join(file.with_suffix("").parts)))
    assert (failed, tried > 0) == (0, True)
