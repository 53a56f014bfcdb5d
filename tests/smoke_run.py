"""Programs at smoke size, as typed or in this process; and one run of the whole pipeline that many tests read."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import child, work_items
from pipeline.jobs import Job
from pipeline.stages import base, train
from robustmerge.stage.address import REPOSITORY


def type_command(program: str, *words: str, runs: Path) -> subprocess.CompletedProcess:
    """Type `bash scripts/<program>.sh profile=smoke ...` and wait for its end."""
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / f"{program}.sh"), "profile=smoke", "logger=none", *words],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_here(monkeypatch: pytest.MonkeyPatch, program: str, *words: str) -> None:
    """Run `python scripts/<program>.py ...` in this process."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{program}.py", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds to it
    runpy.run_path(str(REPOSITORY / "scripts" / f"{program}.py"), run_name="__main__")


def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do here what child processes would do: each would load the libraries anew, which takes seconds."""

    def run_jobs(title: str, jobs: Iterable[Job], *_: object, **__: object) -> None:
        for item in (item for job in jobs for item in job.items):
            child.WORK[item["stage"]](json.loads(json.dumps(item)))

    for module in (base, train, work_items):
        monkeypatch.setattr(module, "run_jobs", run_jobs)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What child processes would do is done here."""
    work_here(monkeypatch)


@pytest.fixture
def type_here(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What `python scripts/<program>.py profile=smoke ...` prints, in this process."""

    def type_words(program: str, *words: str, runs: Path) -> str:
        monkeypatch.setenv("ROBUSTMERGE_RUNS", str(runs))
        run_here(monkeypatch, program, *words, "profile=smoke", "logger=none")
        return capsys.readouterr().out

    return type_words


@dataclass(frozen=True)
class SmokeRun:
    """runs: the folder of all runs; printed: what the two commands said."""

    runs: Path
    printed: str

    @property
    def root(self) -> Path:
        return self.runs / "smoke" / "mini-tiny"

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def predictions(self) -> list[Path]:
        """The prediction files that the default report rests on: the answers to test questions."""
        used = json.loads((self.root / "reports" / "main" / "addresses.json").read_text())
        answers = [address for address in used if address.startswith("predictions/")]
        return [self.root / address for address in answers if not address.startswith("predictions/val/")]


def run_smoke(runs: Path) -> SmokeRun:
    """Both commands, as typed."""
    printed = [type_command(program, runs=runs).stdout for program in ("train_all", "merge_eval")]
    return SmokeRun(runs, "\n".join(printed))
