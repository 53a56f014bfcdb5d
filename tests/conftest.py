"""Fixtures that several test files share."""

from __future__ import annotations

import pytest

from tests.report_cases import context, plain_context, sweep  # noqa: F401  (fixtures of the tests of reports)
from tests.smoke_run import SmokeRun, run_smoke


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The whole pipeline at smoke size, run once."""
    return run_smoke(tmp_path_factory.mktemp("smoke"))
