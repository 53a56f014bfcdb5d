"""The benchmark on tiny experts: that it measures, prints and keeps; never how long anything takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.tools.bench.experts import Shape
from pipeline.tools.bench.merging import choose_rows, format_table, update_table
from pipeline.tools.bench.merging_rows import SMALL, list_rows
from pipeline.tools.bench.rounds import Series, run_rounds
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


def test_a_quick_run_has_few_rows_and_any_that_is_named():
    assert [row.name for row in choose_rows(None, delta=False, small=True)] == list(SMALL)
    assert [row.name for row in choose_rows(["knots_dare"], delta=False, small=True)] == ["knots_dare_ties"]


def test_every_method_file_has_a_row():
    assert {row.method for row in list_rows()} - {""} == set(list_methods())


def test_the_default_shape_is_that_of_the_7b_model():
    modules = Shape().modules()
    assert len(modules) == 224
    assert sum(count for _, count in Shape().one_of_each().values()) == 224
    assert sum(16 * (d_out + d_in) for d_out, d_in in modules.values()) == 39_976_960


MACHINE = {"processor": "x", "cores": 2, "python": "3", "versions": {}, "commit": "first", "dirty": None}
COST = {"cpu": 2.0, "wall": 2.5, "private": 1.0, "bound": 1.0}


def test_a_row_that_is_not_measured_again_stays_in_the_table(tmp_path):
    first = [{"name": name, "made": MACHINE, "failed": "for a reason"} for name in ("average", "ties")]
    update_table(tmp_path, {**vars(Shape())}, first)
    again = {"name": "ties", "made": MACHINE, **COST}
    assert update_table(tmp_path, {**vars(Shape())}, [again])[0] == [first[0], again]
    assert update_table(tmp_path, {**vars(Shape()), "layers": 2}, [again])[0] == [again]


def test_a_row_that_fails_keeps_its_numbers_and_notes_the_failure_until_it_is_measured(tmp_path):
    good = {"name": "ties", "made": MACHINE, **COST}
    failed = {"name": "ties", "made": {**MACHINE, "commit": "later"}, "failed": "no memory"}
    update_table(tmp_path, vars(Shape()), [good])
    for _ in range(2):
        kept, _ = update_table(tmp_path, vars(Shape()), [failed])
        assert kept == [{**good, "failed": "no memory", "failed_on": failed["made"]}]
        assert json.loads((tmp_path / "table.json").read_text())["rows"] == kept
    table = (tmp_path / "table.md").read_text()
    assert "| ties (older: failed since) |  2.00 |   2.50 |" in table
    assert "commit first" in table and "`ties` failed on commit later: no memory" in table
    assert update_table(tmp_path, vars(Shape()), [good])[0] == [good]


def test_the_committed_table_is_what_its_numbers_give():
    table = json.loads((REPOSITORY / "results/bench_merge/table.json").read_text())
    assert format_table(**table) == (REPOSITORY / "results/bench_merge/table.md").read_text()


# The engine of all benchmarks.


def test_rounds_measure_every_row_once_and_leave_out_what_failed_or_took_long():
    def fail() -> dict:
        raise UserError("no memory")

    order: list[str] = []

    def measure(name: str, wall: float) -> dict:
        order.append(name)
        return {"wall": wall}

    rows = [Series("short", lambda: measure("short", 1.0)), Series("bad", fail)]
    rows += [Series("long", lambda: measure("long", 99.0))]
    assert list(run_rounds(rows, 3, repeat_below=60.0)) == [1, 2, 3]
    assert order == ["short", "long", "short", "short"]
    assert (rows[1].failed, rows[1].measurements) == ("no memory", [])
    assert rows[0].median("wall") == 1.0


def test_no_round_begins_when_the_time_is_up():
    row = Series("row", lambda: {"wall": 1.0})
    assert list(run_rounds([row], 3, seconds=0.0)) == [1]
