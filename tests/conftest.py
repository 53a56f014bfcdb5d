"""Fixtures that several test files share."""

from __future__ import annotations

import os

# Before torch is imported. The models are tiny: with two threads, training takes three times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import pytest  # noqa: E402

from tests.report_cases import context, plain_context, sweep  # noqa: E402, F401  (fixtures of the tests of reports)
from tests.smoke_run import SmokeRun, run_smoke  # noqa: E402


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The whole pipeline at smoke size, run once."""
    return run_smoke(tmp_path_factory.mktemp("smoke"))
