"""What a merge in a child process reports moves the bar of the program that started it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.events import read_event, report_progress
from pipeline.jobs import Job, RunningJob
from pipeline.stages.merge import work_merge
from robustmerge.merging import write_merged
from robustmerge.method import build_method, read_method
from robustmerge.stage.progress import Bar
from robustmerge.stage.settings import values_of
from tests.merge_cases import QUIET, address_of, random_experts, write_expert

COUNTING = """
def count(modules): return sum(1 for _ in modules)
def first(pairs, collected): return pairs[0]
"""


@pytest.fixture
def experts(tmp_path: Path) -> dict[str, Path]:
    return {name: write_expert(tmp_path / name, pairs) for name, pairs in random_experts("ab").items()}


def fractions_of(output: str) -> Iterator[float]:
    """How far the parent takes its child to be, after each event of the child."""
    running = RunningJob(Job("merge 1", [{}]), None, Path(), Path(), 0)
    for event in filter(None, map(read_event, output.splitlines())):
        running.handle(event)
        yield running.fraction


@pytest.mark.parametrize("kind", ["one walk", "the whole model first", "what a function collects first"])
def test_a_merge_in_a_child_tells_how_far_it_is(kind, experts, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_progress.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"name": "mine", "_target_": "my_progress.first", "collect": "my_progress.count"}
    method = {
        "one walk": read_method("average"),
        "the whole model first": read_method("ties", prune__scope="model"),
        "what a function collects first": build_method(mine),
    }[kind]
    address = address_of(tmp_path, method, experts)
    folders = {name: str(folder) for name, folder in experts.items()}
    item = {
        "address": address.to_json(),
        "settings": values_of(method),
        "experts": folders,
        "workers": 2,
        "device": "cpu",
    }
    monkeypatch.setattr(Bar, "report", report_progress)
    work_merge(json.loads(json.dumps(item)))
    fractions = list(fractions_of(capsys.readouterr().out))
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert (0.5 in fractions) == (kind != "one walk")
    assert address.is_complete()


def test_a_merge_shows_no_bar_where_there_is_no_terminal_or_none_is_wanted(experts, tmp_path, capsys):
    for progress in (None, False):
        write_merged(tmp_path / f"out{progress}", read_method("average"), experts, progress=progress, **QUIET)
    assert capsys.readouterr().err == ""
