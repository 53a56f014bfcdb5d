"""Rows, averages, bold marks, published values and formats of the tables. Needs nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest
import yaml

from eval.report.formats import escape_latex, escape_markdown, format_csv, format_latex, format_markdown, format_text
from eval.report.published import published_table
from eval.report.results import PUBLISHED, group_results
from eval.report.tables import MISSING
from robustmerge.stage.settings import UserError
from tests.report_cases import N, cell, make_result, make_results, make_task, tables_of


def test_rows_come_in_the_papers_order(context):
    main, _ = tables_of(make_results(), context)
    titles = ["Zero-shot", "Individual", "Multi-task", "Task Arithmetic", "Mine", "RobustMerge"]
    assert [row.title for row in main.rows] == titles
    assert [column.key for column in main.columns] == ["vqav2", "rec", "seen_avg", "aokvqa", "unseen_avg"]


def test_individual_is_each_expert_on_its_own_task_and_has_no_unseen_score(context):
    main, _ = tables_of(make_results(), context)
    assert cell(main, "Individual", "rec").value == pytest.approx(100 * 90 / N)
    assert cell(main, "Individual", "aokvqa").text == cell(main, "Individual", "unseen_avg").text == MISSING


def test_an_average_over_tasks_of_which_one_is_missing_is_missing(context):
    results = [make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 20, "aokvqa": 40})]
    main, _ = tables_of(results, context)
    assert cell(main, "Zero-shot", "seen_avg").text == MISSING
    assert cell(main, "Zero-shot", "unseen_avg").low is not None


def test_only_a_best_merged_value_that_is_clear_is_bold(context):
    main, _ = tables_of(make_results(), context)
    bold = {
        (row.title, column.key)
        for row in main.rows
        for column, one in zip(main.columns, row.cells, strict=True)
        if one.bold
    }
    # vqav2: 80 against 60 of 120. rec: a tie. aokvqa: 50 against 49 is noise. Multi-task is no merged model.
    assert bold == {("RobustMerge", "vqav2"), ("RobustMerge", "seen_avg")}


def test_a_single_merged_model_is_never_bold(context):
    main, _ = tables_of(make_results()[:1], context)
    assert not any(one.bold for row in main.rows for one in row.cells)


def test_the_points_of_a_sweep_are_rows_labelled_by_what_differs(context):
    points = [
        make_result(
            "merged/task_arithmetic",
            "merged",
            "Task Arithmetic",
            {"vqav2": 50},
            overrides={"space": "delta", **strength},
        )
        for strength in ({"strength": 0.3}, {"strength": 0.5}, {})
    ]
    assert [row.title for row in group_results(points)] == [
        "Task Arithmetic (strength=0.3)",
        "Task Arithmetic (strength=0.5)",
        "Task Arithmetic (strength=default)",
    ]
    assert group_results(points[:1])[0].title == "Task Arithmetic (space=delta, strength=0.3)"
    main, published = tables_of(points, context)
    assert len(main.rows) == 3
    assert [row.title for row in published.rows].count("Task Arithmetic") == 1


def test_sources_that_cannot_be_told_apart_get_their_address():
    same = make_result("merged/dare", "merged", "DARE", {"vqav2": 5})
    rows = group_results([same, dataclasses.replace(same, address="merged/dare-99999999")])
    assert [row.title for row in rows] == ["DARE [merged/dare-1a2b3c4d]", "DARE [merged/dare-99999999]"]


def test_a_result_of_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="unknown kind 'mergd' of x; choose one of zero_shot"):
        group_results([make_result("x", "mergd", "X", {})])


def test_published_values_are_the_papers_and_a_missing_one_shows_as_missing(context):
    _, published = tables_of(make_results(), context)
    assert cell(published, "RobustMerge", "vqav2").text == "67.20"
    assert cell(published, "Individual", "aokvqa").text == MISSING
    assert {one.text for row in published.rows if row.title == "Mine" for one in row.cells} == {MISSING}
    # The printed average is over eight tasks, these columns are two of them.
    assert cell(published, "RobustMerge", "seen_avg").text == MISSING


def test_printed_averages_are_shown_where_all_their_tasks_are(context):
    paper = yaml.safe_load(PUBLISHED.read_text())["table_2_mm_mergebench"]
    names = [(name, title, group == "seen") for group in ("seen", "unseen") for name, title in paper[group].items()]
    whole = dataclasses.replace(context, tasks=tuple(make_task(*name) for name in names))
    _, published = tables_of([], whole)
    assert cell(published, "RobustMerge", "seen_avg").text == "57.33"
    assert cell(published, "Zero-shot", "unseen_avg").text == "25.22"
    assert cell(published, "Individual", "unseen_avg").text == MISSING


def test_every_row_of_the_published_file_has_a_value_a_column():
    paper = yaml.safe_load(PUBLISHED.read_text())
    table_2 = paper["table_2_mm_mergebench"]
    for row in table_2["rows"].values():
        assert len(row["seen"]) == len(table_2["seen"]) == 8
        assert len(row.get("unseen", table_2["unseen"])) == len(table_2["unseen"]) == 4
        assert sum(row["seen"]) / 8 == pytest.approx(row["seen_avg"], abs=0.08)
    for name in ("table_6_components", "table_9_dora"):
        for row in paper[name]["rows"].values():
            assert sum(row["seen"]) / 8 == pytest.approx(row["seen_avg"], abs=0.1)
    for name in ("table_4_clip_vit_b_32", "table_5_clip_vit_l_14"):
        for row in paper[name]["rows"].values():
            assert len(row["seen"]) == len(paper[name]["seen"]) == 8
            assert sum(row["seen"]) / 8 == pytest.approx(row["seen_avg"], abs=0.1)


def test_a_file_that_holds_no_published_values_is_named(context, tmp_path):
    (tmp_path / "paper.yaml").write_text("rows: 1\n")
    with pytest.raises(UserError, match=r"paper\.yaml is not a file of published values"):
        published_table([], dataclasses.replace(context, published=tmp_path / "paper.yaml"))


def test_every_format_holds_the_same_rows_and_escapes_its_own_marks(context):
    results = [make_result("merged/a_b", "merged", "A_b | 50% <c>", {"vqav2": 60})]
    main, _ = tables_of(results, context)
    assert "A&#95;b &#124; 50% &#60;c&#62;" in format_markdown(main)
    assert r"A\_b \textbar{} 50\% $<$c$>$" in format_latex(main)
    rows = list(csv.DictReader(io.StringIO(format_csv(main))))
    assert rows[0]["source"] == "A_b | 50% <c>"
    assert float(rows[0]["vqav2"]) == 50.0 and float(rows[0]["vqav2_low"]) < 50 < float(rows[0]["vqav2_high"])
    assert rows[0]["rec"] == ""
    assert escape_latex("a&b\\") == r"a\&b\textbackslash{}"
    assert escape_markdown("a\n`b`") == "a &#96;b&#96;"


def test_the_text_table_is_aligned_and_keeps_to_the_width(context):
    main, _ = tables_of(make_results(), context)
    text = format_text(main, width=60)
    assert max(map(len, text.splitlines())) <= 60
    first = text.split("\n\n")[0].splitlines()
    assert first[0].split()[1:3] == ["Seen", "avg"]
    ends = {re.search(r"\d+\.\d \(", line).start() for line in first[2:]}
    assert len(ends) == 1
    assert "66.7*" in text and text.count("Zero-shot") >= 2
