"""The benchmark of answers on tiny models: that it measures, compares and tells; never how long anything takes."""

from __future__ import annotations

import pytest

from pipeline.tools.bench import answering, answering_cpu, answering_gpu
from pipeline.tools.bench.answering_child import answer
from pipeline.tools.bench.table import describe_machine
from robustmerge.stage.settings import UserError

TINY = answering_gpu.Plan(
    shape="tiny", dtype="fp32", device="cpu", questions=5, tokens=3, batches=(2, 4), pictures=((56, 56), (70, 40)),
    runs=2,
)  # fmt: skip


def in_this_process(pieces):
    return [{**answer(**piece), "wall": 1.0} for piece in pieces]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return answering_cpu.draw_run(tmp_path_factory.mktemp("run") / "drawn", sources=2, limit=3)


def test_both_ways_of_a_gpu_give_the_same_answers_and_every_row_is_told(tmp_path):
    *_, found = answering_gpu.bench(TINY, tmp_path, lambda text: None)
    assert [(row["picture"], row["batch"]) for row in found["rows"]] == [
        (picture, batch) for picture in ("56x56", "70x40") for batch in (answering_gpu.PLAIN, 2, 4)
    ]
    assert all(row["same"] == 1.0 and len(row["seconds"]) == 2 for row in found["rows"])
    assert all(part["read"] > 0 for part in found["parts"])
    table = answering_gpu.table_of(found)
    assert table.count("`model.generate`, one by one") == 2 and "batches of 4" in table


def test_no_round_begins_when_the_time_is_up(tmp_path):
    hasty = answering_gpu.Plan(**{**vars(TINY), "seconds": 0.0, "pictures": ((56, 56),), "batches": (2,)})
    *_, found = answering_gpu.bench(hasty, tmp_path, lambda text: None)
    assert [len(row["seconds"]) for row in found["rows"]] == [1, 1]


def test_a_round_on_a_cpu_compares_all_ways_over_the_same_questions(tmp_path, drawn):
    plan = answering_cpu.Plan(limit=3, batch=2, sources=2, runs=1)
    (found,) = answering_cpu.bench(plan, drawn, tmp_path, lambda text: None, in_this_process)
    answers = {row["name"]: row["answers"] for row in found["rows"]}
    assert set(answers.values()) == {6, 12}
    assert all(row["answers"] == answers[row["against"]] for row in found["rows"] if row["against"])
    table = answering_cpu.table_of(found)
    answering.save(tmp_path / "out", {"made": describe_machine(answering.PACKAGES), **found}, table)
    assert (tmp_path / "out" / "table.md").read_text().startswith(table)


def test_a_process_that_fails_ends_the_benchmark(monkeypatch):
    monkeypatch.setattr("pipeline.tools.bench.answering_cpu.CHILD", "pipeline.no_such_module")
    with pytest.raises(UserError, match="a process that answers has failed"):
        answering_cpu.run_wave([{}, {}])


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_pieces_are_all_items_in_their_order(pieces):
    items = [{"number": n, "settings": {"max_new_tokens": n}} for n in range(5)]
    found = answering_cpu.cut(items, pieces)
    assert sum(found, []) == items and len(found) == pieces


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run with 3 merged models"):
        answering_cpu.find_run(tmp_path, 4)
