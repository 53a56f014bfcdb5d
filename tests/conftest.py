"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

# Before torch is imported. The models are tiny: with two threads, training takes three times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from tests.report_cases import context, plain_context, sweep, undrawn  # noqa: E402, F401  (fixtures)
from tests.smoke_run import SmokeRun, in_this_process, run_smoke, type_here  # noqa: E402, F401  (fixtures)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The whole pipeline at smoke size, run once."""
    return run_smoke(tmp_path_factory.mktemp("smoke"))


def pytest_collection() -> None:
    """The test files import all libraries, whose objects stay: collecting garbage meanwhile takes seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the smoke run come first: together they take the longest."""
    items.sort(key=lambda item: "smoke" not in item.fixturenames)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return OneSmokeRun(config, log)


class OneSmokeRun(LoadScopeScheduling):
    """Gives each worker whole files, but all tests of the smoke run to one, so that it is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        signature = rf"def {test.partition('[')[0]}\([^)]*\b(smoke|places)\b"
        return "smoke" if re.search(signature, Path(self.config.rootpath, file).read_text()) else file
