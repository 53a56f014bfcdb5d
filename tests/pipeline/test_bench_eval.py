"""The benchmark of answers on tiny models: that it measures, compares and prints; never how long anything takes."""

from __future__ import annotations

import json

import pytest

from pipeline.tools.bench import answering, answering_cpu, answering_gpu
from pipeline.tools.bench.answering_work import answer
from pipeline.tools.bench.processes import run_together
from pipeline.tools.bench.rounds import describe_machine
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

TINY = answering_gpu.GpuWorkload(
    shape="tiny", dtype="fp32", device="cpu", questions=5, tokens=3, batches=(2, 4), pictures=((56, 56), (70, 40)),
    runs=2,
)  # fmt: skip


def answer_in_this_process(inputs):
    return [answer(**values) for values in inputs]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return answering_cpu.draw_run(tmp_path_factory.mktemp("run") / "drawn", sources=2, limit=3)


def test_both_ways_of_a_gpu_give_the_same_answers_and_every_row_is_shown(tmp_path):
    *_, table = answering_gpu.bench(TINY, tmp_path)
    assert [(row["picture"], row["batch"]) for row in table["rows"]] == [
        (picture, batch) for picture in ("56x56", "70x40") for batch in (answering_gpu.PLAIN, 2, 4)
    ]
    assert all(row["same"] == 1.0 and len(row["seconds"]) == 2 for row in table["rows"])
    assert all(part["read"] > 0 for part in table["parts"])
    markdown = answering_gpu.format_table(table)
    assert markdown.count("`model.generate`, one by one") == 2 and "batches of 4" in markdown


def test_a_round_on_a_cpu_compares_all_ways_over_the_same_questions(tmp_path, drawn, capsys):
    workload = answering_cpu.CpuWorkload(limit=3, batch=2, sources=2, runs=1)
    tables = list(answering_cpu.bench(workload, drawn, tmp_path, answer_in_this_process))
    (rows,) = [table["rows"] for table in tables]
    answers = {row["name"]: row["answers"] for row in rows}
    assert set(answers.values()) == {6, 12}
    assert all(row["answers"] == answers[row["against"]] for row in rows if row["against"])
    machine = describe_machine(answering.PACKAGES)
    answering.save_rounds(tmp_path / "out", tables, answering_cpu.format_table, machine)
    saved = (tmp_path / "out" / "table.md").read_text()
    assert saved.startswith(answering_cpu.format_table(tables[0])) and saved in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == {"made": machine, **tables[0]}


def test_a_process_reports_what_it_took_and_what_it_returns():
    costs = run_together("pipeline.tools.bench.merging_work:do_nothing", [{}, {}])
    assert [cost.answer for cost in costs] == [{}, {}]
    assert all(cost.private > 1 and cost.cpu >= 0 and cost.wall > 0 for cost in costs)


def test_a_process_that_fails_ends_the_benchmark(drawn, tmp_path):
    with pytest.raises(UserError, match="No module named 'pipeline.no_such_module'"):
        run_together("pipeline.no_such_module:work", [{}, {}])

    def fail(inputs):
        raise UserError("no memory")

    with pytest.raises(UserError, match="a process that answers has failed: no memory"):
        list(answering_cpu.bench(answering_cpu.CpuWorkload(limit=3, sources=2), drawn, tmp_path, fail))


@pytest.mark.parametrize("folder", ["", "gpu"])
def test_the_committed_tables_are_what_their_numbers_give(folder):
    saved = REPOSITORY / "results" / "bench_eval" / folder
    module = answering_gpu if folder else answering_cpu
    markdown = module.format_table(json.loads((saved / "table.json").read_text()))
    assert (saved / "table.md").read_text().startswith(markdown)


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_pieces_are_all_items_in_their_order(pieces):
    items = [{"number": n, "settings": {"max_new_tokens": n}} for n in range(5)]
    cut = answering_cpu.cut_items(items, pieces)
    assert sum(cut, []) == items and len(cut) == pieces


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run with 3 merged models"):
        answering_cpu.find_run(tmp_path, 4)
