"""What goes to Weights & Biases, offline without a key; a failure there costs nothing. Needs nothing."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping

import pytest
import yaml

from eval.report import wandb_log
from eval.report.assemble import assemble_report
from eval.report.tables import Table
from eval.settings import LOGGER_NAMES, Logger
from robustmerge.stage.settings import build
from tests.report_cases import REPOSITORY, make_results


@pytest.mark.parametrize("name", LOGGER_NAMES)
def test_every_logger_has_a_file_that_builds_it(name):
    values = yaml.safe_load((REPOSITORY / "configs" / "logger" / f"{name}.yaml").read_text())
    assert build(Logger, values, "logger").name == name


@pytest.fixture(scope="module")
def tables(plain_context) -> Mapping[str, Table]:
    return assemble_report(make_results(), plain_context).tables


class FakeRun:
    def __init__(self, broken: bool):
        self.broken, self.logged, self.summary = broken, {}, {}
        self.url, self.settings = "https://wandb.test/run", types.SimpleNamespace(sync_dir="wandb/offline")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def log(self, values):
        if self.broken:
            raise ConnectionError("no route to host")
        self.logged.update(values)


def fake_wandb(monkeypatch, key: bool = False, broken: bool = False) -> types.SimpleNamespace:
    run, started = FakeRun(broken), {}
    module = types.SimpleNamespace(
        run=run,
        started=started,
        login=lambda **_: key,
        init=lambda **values: started.update(values) or run,
        Settings=lambda **values: values,
        Table=lambda columns, data: (columns, data),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize(
    ("mode", "key", "expected"), [("auto", False, "offline"), ("auto", True, "online"), ("offline", True, "offline")]
)
def test_tables_and_averages_go_to_wandb_offline_without_a_key(
    context, tables, tmp_path, monkeypatch, mode, key, expected
):
    module, messages = fake_wandb(monkeypatch, key), []
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_log.log_report(Logger("wandb", mode=mode), tmp_path, tables, context, messages.append) == expected
    assert module.started["mode"] == expected and module.started["dir"] == str(tmp_path)
    assert set(module.run.logged) == {"main", "published", "differences", "pairs", "standing", "counts"}
    columns, data = module.run.logged["main"]
    assert columns[:2] == ["Source", "VQAv2"] and data[0][0] == "Zero-shot"
    assert module.run.summary["seen_avg/RobustMerge"] == pytest.approx(100 * 140 / 240)
    assert "unseen_avg/Individual" not in module.run.summary
    assert ("wandb sync" in messages[0]) == (expected == "offline")


def test_a_failure_of_wandb_is_a_warning(context, tables, tmp_path, monkeypatch):
    fake_wandb(monkeypatch, broken=True)
    messages: list[str] = []
    assert wandb_log.log_report(Logger("wandb"), tmp_path, tables, context, messages.append) is None
    assert messages == ["warning: the report was not logged to W&B: ConnectionError: no route to host"]
