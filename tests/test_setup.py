"""setup.sh installs into an environment of its own, and leaves those of other checkouts alone. Needs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from robustmerge.stage.address import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def make_environment(folder: Path, owner: Path | None = None) -> Path:
    """An environment whose python and pip only write down how they are called."""
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "pip"):
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/calls'\n")
        program.chmod(0o755)
    if owner is not None:
        (folder / ".installed").write_text(f"123 456 {owner}\n")
    return folder


def set_up(checkout: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CONDA")}
    script = str(checkout / "scripts" / "setup.sh")
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)


def test_an_environment_that_is_a_link_is_refused(checkout: Path, tmp_path: Path) -> None:
    other = make_environment(tmp_path / "other" / ".venv", owner=tmp_path / "other")
    (checkout / ".venv").symlink_to(other)
    ended = set_up(checkout)
    assert ended.returncode == 1
    assert f"it is a link to {other}; it was made for {tmp_path / 'other'}\n" in ended.stderr
    assert f"Remove it (rm '{checkout / '.venv'}')" in ended.stderr
    assert not (other / "calls").exists()


def test_an_environment_of_another_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    make_environment(checkout / ".venv", owner=tmp_path / "other place")
    ended = set_up(checkout)
    assert ended.returncode == 1
    assert f"it was made for {tmp_path / 'other place'}\n" in ended.stderr
    assert f"Remove it (rm -rf '{checkout / '.venv'}')" in ended.stderr
    assert not (checkout / ".venv" / "calls").exists()


@pytest.mark.parametrize("is_older", [False, True], ids=["unfinished", "of an older lock file"])
def test_an_environment_of_this_checkout_is_installed_once(checkout: Path, is_older: bool) -> None:
    make_environment(checkout / ".venv", owner=checkout if is_older else None)
    calls = checkout / ".venv" / "calls"
    for _ in range(2):
        ended = set_up(checkout)
        assert ended.returncode == 0, ended.stderr
        assert [line.split()[-2:] for line in calls.read_text().splitlines()] == [
            ["-r", str(checkout / "requirements.lock")],
            ["-e", str(checkout)],
        ]


def test_a_checkout_is_the_same_through_a_link(checkout: Path, tmp_path: Path) -> None:
    make_environment(checkout / ".venv", owner=checkout)
    (tmp_path / "link").symlink_to(checkout)
    ended = set_up(tmp_path / "link")
    assert ended.returncode == 0, ended.stderr
