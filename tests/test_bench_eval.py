"""The benchmark of answers on tiny models: that it measures, compares and tells; never how long anything takes."""

from __future__ import annotations

import pytest

from robustmerge.settings import UserError
from scripts import bench_cpu, bench_eval, bench_gpu
from scripts.bench_answers import answer
from scripts.bench_table import describe_machine

TINY = bench_gpu.Plan(
    shape="tiny", dtype="fp32", device="cpu", questions=5, tokens=3, batches=(2, 4), pictures=((56, 56), (70, 40)),
    runs=2,
)  # fmt: skip


def in_this_process(pieces):
    return [{**answer(**piece), "wall": 1.0} for piece in pieces]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return bench_cpu.draw_run(tmp_path_factory.mktemp("run") / "drawn", sources=2, limit=3)


def test_both_ways_of_a_gpu_give_the_same_answers_and_every_row_is_told(tmp_path):
    *_, found = bench_gpu.bench(TINY, tmp_path, lambda text: None)
    assert [(row["picture"], row["batch"]) for row in found["rows"]] == [
        (picture, batch) for picture in ("56x56", "70x40") for batch in (bench_gpu.PLAIN, 2, 4)
    ]
    assert all(row["same"] == 1.0 and len(row["seconds"]) == 2 for row in found["rows"])
    assert all(part["read"] > 0 for part in found["parts"])
    table = bench_gpu.table_of(found)
    assert table.count("`model.generate`, one by one") == 2 and "batches of 4" in table


def test_no_round_begins_when_the_time_is_up(tmp_path):
    hasty = bench_gpu.Plan(**{**vars(TINY), "seconds": 0.0, "pictures": ((56, 56),), "batches": (2,)})
    *_, found = bench_gpu.bench(hasty, tmp_path, lambda text: None)
    assert [len(row["seconds"]) for row in found["rows"]] == [1, 1]


def test_a_round_on_a_cpu_compares_all_ways_over_the_same_questions(tmp_path, drawn):
    plan = bench_cpu.Plan(limit=3, batch=2, sources=2, runs=1)
    (found,) = bench_cpu.bench(plan, drawn, tmp_path, lambda text: None, in_this_process)
    answers = {row["name"]: row["answers"] for row in found["rows"]}
    assert set(answers.values()) == {6, 12}
    assert all(row["answers"] == answers[row["against"]] for row in found["rows"] if row["against"])
    table = bench_cpu.table_of(found)
    bench_eval.save(tmp_path / "out", {"made": describe_machine(bench_eval.PACKAGES), **found}, table)
    assert (tmp_path / "out" / "table.md").read_text().startswith(table)


def test_a_process_that_fails_ends_the_benchmark(monkeypatch):
    monkeypatch.setattr(bench_cpu, "CHILD", "scripts.no_such_module")
    with pytest.raises(UserError, match="a process that answers has failed"):
        bench_cpu.run_wave([{}, {}])


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_pieces_are_all_items_in_their_order(pieces):
    items = [{"number": n, "settings": {"max_new_tokens": n}} for n in range(5)]
    found = bench_cpu.cut(items, pieces)
    assert sum(found, []) == items and len(found) == pieces


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run with 3 merged models"):
        bench_cpu.find_run(tmp_path, 4)
