"""The tables beside the main one (other protocol, counts, parts, pairs), and the notice of a partial evaluation."""

from __future__ import annotations

import csv
import dataclasses
import io
from itertools import combinations

import pytest

from eval.report.assemble import assemble_report, format_summary
from eval.report.figures import draw_figures
from eval.report.formats import format_csv, format_html
from eval.report.notes import FOOTNOTES, format_footnotes, format_partial_notice
from eval.report.results import SourceResult, group_results
from eval.report.secondary_tables import counts_table, format_part, further_tables, parts_table
from eval.report.standing import pairs_table
from eval.report.tables import MISSING, main_table
from eval.settings import Official
from pipeline.stages.score import format_score
from robustmerge.stage.records import Score
from tests.report_cases import TASKS, N, both, cell, make_results, make_score, make_seeds, measure

NO_JAVA = "METEOR needs Java (java is not on PATH)"
PUBLISHED = Official(image="crop", parse="raw", metric="official_substring")
TWO = (*(dataclasses.replace(task, official=PUBLISHED) for task in TASKS[:2]), TASKS[2])


def with_also(results: list[SourceResult]) -> list[SourceResult]:
    """The same sources with ten more right answers under the other protocol, and no such score on REC."""
    with_others = []
    for result in results:
        also = {task: make_score(task, min(N, int(sum(score.values.values())) + 10), n_empty=1)
                for task, score in result.scores.items()}  # fmt: skip
        if "rec" in also:
            also["rec"] = dataclasses.replace(also["rec"], value=None, reason=NO_JAVA)
        with_others.append(dataclasses.replace(result, other_scores=also))
    return with_others


@pytest.fixture
def two(context):
    return dataclasses.replace(context, tasks=TWO, questions={})


def test_the_other_protocol_has_a_table_of_its_own_and_below_it_what_is_wrong_with_it(two):
    with_other, without = assemble_report(with_also(make_results()), two), assemble_report(make_results(), two)
    for name in ("tables/main.csv", "tables/pairs.csv", "figures/tasks.svg"):
        assert with_other.files[name] == without.files[name]
    other, main = with_other.tables["other_protocol"], with_other.tables["main"]
    assert "official protocol" in other.title and other.columns == main.columns
    shown = cell(other, "RobustMerge", "vqav2")
    assert shown.value == pytest.approx(100 * 90 / N) and shown.low < shown.value < shown.high
    assert cell(other, "RobustMerge", "rec").text == cell(other, "RobustMerge", "seen_avg").text == MISSING
    text = with_other.files["report.md"].decode()
    section = text[text.index("## Scores under the official protocol") : text.index("## Published values")]
    assert "- — of REC: METEOR needs Java (java is not on PATH)." in section
    assert "**VQAv2, REC** (`official_substring`)" in section and "**VQAv2, REC** (`crop`)" in section
    assert "treat AOKVQA alike" in section
    assert "other_protocol" not in without.tables and "## Scores under" not in without.files["report.md"].decode()


@pytest.mark.usefixtures("undrawn")
def test_an_official_report_names_its_protocol_and_explains_its_own_numbers(two):
    official = dataclasses.replace(two, protocol="official")
    report = assemble_report(with_also(make_results()), official)
    text = report.files["report.md"].decode()
    scores = text[text.index("## Scores\n") : text.index("## Figures")]
    assert "official protocol" in report.tables["main"].title and "(`official_substring`)" in scores
    assert "corrected protocol" in report.tables["other_protocol"].title
    assert "Protocol `official`" in text
    assert text.count("(`official_substring`)") == 1


def test_a_footnote_is_there_for_what_a_shown_task_has_and_for_nothing_else(context, two):
    assert format_footnotes([], context, "official") == format_footnotes([], two, "corrected") == ""
    notes = format_footnotes([], two, "official")
    assert [key for key in FOOTNOTES if f"(`{key}`)" in notes] == ["crop", "official_substring"]
    assert FOOTNOTES["crop"] in notes


def test_captions_scored_without_java_are_not_passed_off_as_published_figures(context):
    results = make_results()
    for result in results:
        result.scores["rec"] = dataclasses.replace(result.scores["rec"], metric="cider_builtin")
    notes = format_footnotes(group_results(results), context, "corrected")
    assert notes.startswith("- **REC** (`cider_builtin`): without Java") and "no published CIDEr compares" in notes


def test_the_terminal_says_so_too():
    caption = dataclasses.replace(make_results()[0].scores["rec"], metric="cider_builtin")
    scores = (caption, make_results()[0].scores["rec"])
    builtin, published = (format_score("zero_shot", "rec", score) for score in scores)
    assert "cider_builtin: without Java" in builtin and "Java" not in published


def test_an_average_is_missing_where_a_score_of_one_seed_cannot_be_had(context):
    results = make_seeds("dare", "DARE", {1: both(30), 2: both(60)})
    results[1].scores["rec"] = dataclasses.replace(results[1].scores["rec"], value=None, reason=NO_JAVA)
    rows = group_results(results)
    main = main_table(rows, context, measure(rows, context))
    assert [cell(main, "DARE", key).text for key in ("rec", "seen_avg")] == [MISSING] * 2
    assert cell(main, "DARE", "vqav2").value == pytest.approx(100 * 45 / N)


def test_every_question_is_counted_once_beside_each_score(two):
    results = with_also(make_seeds("dare", "DARE", {1: both(30), 2: both(60)}))
    table = counts_table(group_results([*results, *with_also(make_results())]), two)
    lines = list(csv.DictReader(io.StringIO(format_csv(table))))
    kinds = ("scored", "empty", "unparsed", "failed")
    assert all(int(one["n_expected"]) == sum(int(one[f"n_{kind}"]) for kind in kinds) for one in lines)
    first = {(one["source"], one["protocol"], one["task"]): one for one in lines}["DARE", "official", "vqav2"]
    assert (first["n_expected"], first["n_empty"], first["score"]) == (str(2 * N), "2", f"{100 * 55 / N:.4f}")
    assert len(lines) == 2 * (3 + 5 * 3 + 2)  # both protocols: DARE, five sources on three tasks, the experts on two


def with_parts(score: Score, **parts: float | None) -> Score:
    return dataclasses.replace(score, parts=parts)


def test_parts_are_means_over_seeds_and_missing_where_one_is(context):
    results = make_seeds("dare", "DARE", {1: both(30), 2: both(60)})
    for result, bleu, meteor in zip(results, (10.0, 30.0), (20.0, None), strict=True):
        result.scores["rec"] = with_parts(result.scores["rec"], bleu_4_builtin=bleu, meteor=meteor)
    table = parts_table(group_results(results), context, "parts", "corrected")
    assert [(column.heading, column.title) for column in table.columns] == [
        ("REC", "BLEU-4, own words"),
        ("REC", "METEOR"),
    ]
    assert [one.text for one in table.rows[0].cells] == ["20.0", MISSING]
    assert parts_table(group_results(make_results()), context, "parts", "corrected") is None
    assert [format_part(part) for part in ("rouge_l", "cider_builtin", "with_picture")] == [
        "ROUGE-L",
        "CIDEr, own words",
        "With picture",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_partial_evaluation_is_called_one_on_the_page_and_in_the_terminal(plain_context):
    def limit(results, n):
        limited = [{t: dataclasses.replace(s, n_asked=n) for t, s in one.scores.items()} for one in results]
        return [dataclasses.replace(one, scores=scores) for one, scores in zip(results, limited, strict=True)]

    report = assemble_report(limit(make_results(), 1500), plain_context)
    notes = f"PARTIAL EVALUATION, NOT A RESULT: {N} of 1,500 questions a task."
    assert report.files["report.md"].decode().splitlines()[2] == f"> **{notes}**"
    assert format_summary(report).startswith(notes)
    assert format_partial_notice(group_results(limit(make_results(), 0)), plain_context) == ""
    mixed = [*limit(make_results()[:1], 1500), *make_results()[1:]]
    mixed[0].scores["rec"] = make_score("rec", 3)
    assert (
        format_partial_notice(group_results(mixed), plain_context)
        == f"PARTIAL EVALUATION, NOT A RESULT: VQAv2, AOKVQA {N} of 1,500 questions."
    )


def test_every_pair_of_a_block_is_there_once_and_bold_only_outside_the_noise(sweep, context):
    rows = group_results(sweep)
    measured = measure(rows, context)
    table = pairs_table(rows, context, measured)
    blocks = {row.block: [other.title for other in rows if other.block == row.block] for row in rows if row.block}
    wanted = {(one, other) for titles in blocks.values() for other, one in combinations(titles, 2)}
    assert {tuple(row.title.split(" minus ")) for row in table.rows} == wanted and len(table.rows) == len(wanted)
    cells = [one for row in table.rows for one in row.cells]
    assert {one.bold for one in cells} == {True, False}
    for one in cells:
        clear = all(low > 0 or high < 0 for low, high in ((one.low, one.high), (one.seeds_low, one.seeds_high)))
        assert one.bold == clear
    assert pairs_table(rows[:4], context, measured) is None  # no merged model


def test_a_score_above_100_fills_its_bar_and_stays_on_the_axes(context):
    result = make_results()[0]
    caption = dataclasses.replace(
        result.scores["rec"], value=143.0, values=dict.fromkeys(result.scores["rec"].values, 1.43)
    )
    rows = group_results([dataclasses.replace(result, scores={**result.scores, "rec": caption})])
    main = main_table(rows, context, measure(rows, context))
    assert cell(main, "RobustMerge", "rec").text == "143.0"
    assert "--v:100.0%" in format_html(main) and "--v:143" not in format_html(main)
    (tasks,) = [one.svg.decode() for one in draw_figures(main) if one.name == "tasks"]
    assert "<!-- 140 -->" in tasks


def test_further_tables_are_only_those_that_have_something_to_show(context):
    assert set(further_tables(group_results(make_results()), context)) == {"counts"}
    assert set(further_tables(group_results(with_also(make_results())), context)) == {"counts", "other_protocol"}
