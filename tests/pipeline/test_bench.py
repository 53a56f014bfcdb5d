"""The benchmark on tiny experts: that it measures, tells and keeps; never how long anything takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.tools.bench.experts import Shape
from pipeline.tools.bench.merging import choose_rows
from pipeline.tools.bench.merging_rows import SMALL, all_rows
from pipeline.tools.bench.table import keep
from robustmerge.method import list_methods
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

TINY = ["--layers", "1", "--hidden", "16", "--wide", "24", "--rank", "4", "--experts", "2", "--runs", "1"]


def test_a_tiny_run_prints_and_saves_every_row_it_measured(tmp_path):
    folders = ["--folder", tmp_path / "work", "--out", tmp_path / "out"]
    command = [sys.executable, "scripts/bench_merge.py", *TINY, *folders, "--rows", "lower", "task_arithmetic,"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]}
    assert list(rows) == ["lower bound", "task_arithmetic, delta"]
    assert rows["task_arithmetic, delta"]["peft"]["kind"] == "cat"
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in done.stdout
    assert all(f"| {name} " in table for name in rows)
    assert not list((tmp_path / "work").glob("merged-*"))


def test_an_unknown_row_is_refused_before_anything_is_measured():
    with pytest.raises(UserError, match="no row begins with 'robust_merge'"):
        choose_rows(["robust_merge"], delta=False)


def test_a_quick_look_has_few_rows_and_any_that_is_named():
    assert [row.name for row in choose_rows(None, delta=False, small=True)] == list(SMALL)
    assert [row.name for row in choose_rows(["knots_dare"], delta=False, small=True)] == ["knots_dare_ties"]


def test_every_method_file_has_a_row():
    assert {row.method for row in all_rows()} - {""} == set(list_methods())


def test_the_default_shape_is_that_of_the_7b_model():
    modules = Shape().modules()
    assert len(modules) == 224
    assert sum(count for _, count in Shape().one_of_each().values()) == 224
    assert sum(16 * (d_out + d_in) for d_out, d_in in modules.values()) == 39_976_960


def test_a_row_that_is_not_measured_again_stays_in_the_table(tmp_path):
    made = {"processor": "x", "cores": 2, "python": "3", "versions": {}, "commit": None, "dirty": None}
    first = [{"name": name, "made": made, "failed": "for a reason"} for name in ("a", "b")]
    keep(tmp_path, {**vars(Shape())}, first, ["a", "b"])
    again = {"name": "b", "made": made, "cpu": 2.0, "wall": 2.0, "private": 1.0, "bound": 1.0}
    kept = keep(tmp_path, {**vars(Shape())}, [again], ["a", "b"])
    assert kept == [first[0], again]
    assert keep(tmp_path, {**vars(Shape()), "layers": 2}, [again], ["a", "b"]) == [again]


def test_a_row_that_fails_keeps_its_numbers_and_tells_of_the_failure_until_it_is_measured(tmp_path):
    made = {"processor": "x", "cores": 2, "python": "3", "versions": {}, "commit": "first", "dirty": None}
    good = {"name": "a", "made": made, "cpu": 2.0, "wall": 2.5, "private": 1.0, "bound": 1.0}
    failed = {"name": "a", "made": {**made, "commit": "later"}, "failed": "no memory"}
    keep(tmp_path, vars(Shape()), [good], ["a"])
    for _ in range(2):
        kept = keep(tmp_path, vars(Shape()), [failed], ["a"])
        assert kept == [{**good, "failed": "no memory", "failed_on": failed["made"]}]
        assert json.loads((tmp_path / "table.json").read_text())["rows"] == kept
    table = (tmp_path / "table.md").read_text()
    assert "| a (older: failed since) |  2.00 |   2.50 |" in table
    assert "commit first" in table and "`a` failed on commit later: no memory" in table
    assert keep(tmp_path, vars(Shape()), [good], ["a"]) == [good]
