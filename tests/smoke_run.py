"""One smoke-sized run of the whole pipeline, once a test session, shared by all tests that read its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from robustmerge.stage.address import REPOSITORY


def type_command(program: str, *words: str, runs: Path, check: bool = True) -> subprocess.CompletedProcess:
    """Type `bash scripts/<program>.sh profile=smoke ...` and wait for its end."""
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / f"{program}.sh"), "profile=smoke", "logger=none", *words],
        env={**os.environ, "ROBUSTMERGE_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


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
