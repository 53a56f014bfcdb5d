"""The report of a sweep: blocks, figures, sections in words. Needs nothing."""

from __future__ import annotations

import dataclasses
import io

import pytest
from matplotlib import image

from eval.report.assemble import assemble_report, format_summary
from eval.report.contact_sheet import draw_contact_sheet
from eval.report.examples import select_example_groups
from eval.report.formats import escape_markdown, format_csv, format_html, format_text
from eval.report.palette import assign_styles, list_panels
from eval.report.provenance import format_provenance_section
from eval.report.results import CHOSEN, Choice, Regime, SourceResult, group_results
from eval.report.section_base_model import format_base_section
from eval.report.section_methods import format_methods_section
from eval.report.standing import describe_standing, difference_table, standing_table
from eval.report.tables import main_table
from eval.settings import Bootstrap
from tests.report_cases import SWEPT, TASKS, both, make_result, make_results, make_seeds, measure


def test_robustmerge_is_compared_within_its_block_and_the_verdicts_are_put_in_words(sweep, context):
    rows = group_results(sweep)
    table = standing_table(rows, context, measure(rows, context))
    assert [row.label for row in table.rows] == ["Task Arithmetic", "DARE", "TIES", "PCB"] * 4
    sentences = dict(describe_standing(table))
    assert len(sentences) == 8
    assert "clearly above" in sentences["Seen tasks, independent A, default strength"]
    assert "TIES" in sentences["Unseen tasks, shared A, strength chosen on val"].partition("not sentences apart")[0]
    assert all(c.bold == (c.low * c.high > 0 < c.seeds_low * c.seeds_high) for row in table.rows for c in row.cells)
    assert {row.block for row in difference_table(rows, context, measure(rows, context)).rows} == {
        row.block for row in table.rows
    }


def test_every_format_of_a_sweep_names_its_rows_and_csv_has_both_noises(sweep, context):
    rows = group_results(sweep)
    main = main_table(rows, context, measure(rows, context))
    page = format_html(main)
    assert page.count('<tr class="block">') == 4 and "Shared A, strength chosen on val" in page
    head, *lines = format_csv(main).splitlines()
    assert {"seen_avg", "seen_avg_low", "seen_avg_high", "seen_avg_deviation"} <= set(head.split(","))
    assert len(lines) == 24
    standing = format_csv(standing_table(rows, context, measure(rows, context))).splitlines()[0]
    assert {"seen_avg_seeds_low", "seen_avg_seeds_high"} <= set(standing.split(","))
    assert max(map(len, format_text(main, averages_only=True).splitlines())) < 110


def test_in_a_figure_a_method_is_drawn_alike_in_both_panels_and_hollow_at_its_default(sweep, context):
    rows = group_results(sweep)
    main = main_table(rows, context, measure(rows, context))
    styles = {row.title: style for row, style in zip(main.rows, assign_styles(main.rows), strict=True)}
    assert [heading for heading, _ in list_panels(main.rows)] == ["independent A", "shared A"]
    assert [len(indices) for _, indices in list_panels(main.rows)] == [13, 13]
    assert styles["TIES (shared A)"] == styles["TIES (independent A)"]
    chosen = styles["TIES, strength chosen (shared A)"]
    assert chosen.filled and dataclasses.replace(chosen, filled=False) == styles["TIES (shared A)"]


def test_the_report_of_a_sweep_is_whole(sweep, context):
    report = assemble_report(sweep, dataclasses.replace(context, bootstrap=Bootstrap(draws=200)))
    text = report.files["report.md"].decode()
    for wanted in ("Where RobustMerge stands", "Seed by seed", "experts 1, 2, 3, 4, 5", "Student's t", "sheet.png"):
        assert wanted in text, wanted
    assert {"tables/seeds.tex", "tables/standing.csv", "figures/standing.png", "figures/sheet.png"} <= set(report.files)
    assert "Unseen avg" in format_summary(report) and "VQAv2" not in format_summary(report)


@pytest.mark.usefixtures("undrawn")
def test_of_many_blocks_one_line_says_who_is_first_where(context):
    results = [
        make_result(f"merged/{name}", "merged", title, both(right), facet=f"merge count = {count}")
        for count, rights in enumerate(((60, 30), (30, 60), (60, 59), (30, 60), (60, 30)), start=1)
        for (name, title), right in zip((("ties", "TIES"), ("robustmerge", "RobustMerge")), rights, strict=True)
    ]
    report = assemble_report(results, dataclasses.replace(context, bootstrap=Bootstrap(draws=200)))
    text = report.files["report.md"].decode()
    said = "by merge count: TIES: 1*, 3, 5*; RobustMerge: 2*, 4* (* its lead is outside the noise)."
    assert f"- **Seen tasks:** first of the merged models {escape_markdown(said)}" in text
    assert "is first of the merged models with" not in text


def test_answers_are_shown_of_one_block_with_its_references(sweep):
    shown = [row.title for row in select_example_groups(group_results(sweep))]
    assert shown[:3] == ["Zero-shot", "Individual (independent A)", "Multi-task"]
    assert shown[3:] == [f"{title}, strength chosen (independent A)" for title, _ in SWEPT.values()]


def test_the_methods_tell_grid_choice_and_where_the_grid_was_too_small():
    def make(seed: int, factor: float, at_end: bool) -> SourceResult:
        means = {0.5: 30.0, 1.0: 40.0 + seed, 2.0: 35.0}
        choice = Choice(factor, f"{2 * factor:g}", at_end, means)
        return make_result("merged/ties", "merged", "TIES", both(9), variant=CHOSEN, seed=seed, choice=choice)

    default = make_seeds("ties", "TIES", {1: both(9), 2: both(8)}, settings={"space": "delta"})
    text = format_methods_section(group_results([*default, make(1, 1.0, False), make(2, 2.0, True)]))
    assert text.count("- **TIES.** `space=delta`.") == 1
    assert "| Method | × 0.5 | × 1 | × 2 |" in text and "| TIES | 30.0 | **41.5** | 35.0 |" in text
    assert "1 (2), seed 1; 2 (4) ⚠, seed 2" in text
    assert "**At the grid's end:** TIES, seed 2." in text and "4 addresses" in text


def test_what_the_base_cannot_is_marked():
    base = {"probe": {"colour": 0.949, "shape": 0.951}, "heads": {"colour": 1.0}, "skills": {"all": 0.9, "box": 0.5}}
    text = format_base_section([{**base, "parameters": 2_100_000, "name": "tiny-paper"}])
    assert "1 of 2 concepts" in text and "| Linear probe | **94.9** ▼ | 95.1 |" in text
    assert "0 of 1 skills" in text and "| Right answers | 90.0 | **50.0** ▼ |" in text
    assert "the base `tiny-paper` of 2.1 million parameters" in text
    of_clip = format_base_section([{"probe": {"cars": 0.96}, "name": "clip-tiny"}])
    assert "## Can the base see?" in of_clip and "dialogues" not in of_clip and "see and obey?" in text
    assert format_base_section([]) == "" == format_base_section([{"name": "tiny-paper", "seconds": 1.0}])


def test_of_several_bases_each_has_its_own_part():
    bases = [
        {"name": f"tiny-{knows}", "skills": {"all": 1.0, "box": value}} for knows, value in (("half", 1), ("x", 0.5))
    ]
    text = format_base_section([*bases, {"name": "tiny-unmeasured"}])
    assert "Measured on each of 2 bases" in text and "unmeasured" not in text
    of_half, of_x = text.split("### The base `")[1:]
    assert of_half.startswith("tiny-half`") and "1 of 1 skills" in of_half
    assert of_x.startswith("tiny-x`") and "0 of 1 skills" in of_x


def test_how_low_the_rank_is_and_how_fine_the_scores_are_is_stated(context):
    rows = group_results(make_results())
    text = format_provenance_section(
        rows, dataclasses.replace(context, regime=Regime(8, 4, 160)), measure(rows, context)
    )
    assert "8 experts of rank 4 span at most 32 of 160 dimensions, N·r/d = 0.20" in text
    assert "half-width of the 95 % interval of the seen average is" in text


def test_the_sheet_is_a_picture_and_the_same_bytes_each_time(context):
    sheet = draw_contact_sheet(context.question_files())
    assert sheet == draw_contact_sheet(context.question_files())
    pixels = image.imread(io.BytesIO(sheet))
    assert pixels.shape[0] > 300 * len(TASKS) / 2 and pixels.shape[1] > 1000
    assert draw_contact_sheet([]) is None
