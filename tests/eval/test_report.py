"""Tables, figures and the report on made-up scores whose answer is known."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from eval.report.assemble import Report, assemble_report, format_summary, write_report
from eval.report.captions import CAPTIONS
from eval.report.examples import EXAMPLES_A_TASK, LONGEST_SIDE, read_pixels
from eval.report.figures import draw_figures
from eval.report.page import make_page
from eval.report.palette import assign_styles
from eval.report.results import SourceResult
from eval.report.tables import MISSING
from robustmerge.stage.records import Example, write_examples
from robustmerge.stage.settings import UserError
from tests.report_cases import (
    PAPER_URL,
    REPOSITORY,
    TASKS,
    cell,
    make_result,
    make_results,
    make_score,
    tables_of,
    with_predictions,
)


def test_a_report_is_whole_and_its_page_needs_nothing_else(context, tmp_path):
    path = write_report(tmp_path / "report", assemble_report(with_predictions(make_results(), tmp_path), context))
    text, page = path.read_text(), (tmp_path / "report" / "report.html").read_text()
    for wanted in ("Zero-shot", "0123abc", "uncommitted", "training 7", "VQAv2 120", "400 draws", context.command):
        assert wanted in text and wanted in page
    for name in re.findall(r'(?:src="|\]\()(figures/[^")]+)', text):
        assert (tmp_path / "report" / name).exists(), name
    assert not re.findall(r'(?:src|href)="(?!data:|https://arxiv)', page)
    for name in ("main", "published", "differences"):
        assert (tmp_path / "report" / "tables" / f"{name}.tex").exists()
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()
    for name in ("seen_unseen.png", "seen_unseen.svg", "tasks.png", "tasks.svg"):
        assert (tmp_path / "report" / "figures" / name).stat().st_size > 5000
    assert "SMOKE" not in text and "None: every answer was there" in text


@pytest.fixture(scope="module")
def sweep_report(sweep, plain_context) -> Report:
    return assemble_report(sweep, plain_context)


def test_the_json_holds_every_number_of_the_tables_and_what_each_rests_on(sweep_report, plain_context):
    report, read = sweep_report, json.loads(sweep_report.files["report.json"])
    assert set(read["tables"]) == set(report.tables)
    for name, table in report.tables.items():
        for row, written in zip(table.rows, read["tables"][name]["rows"], strict=True):
            for column, one in zip(table.columns, row.cells, strict=True):
                number = written[column.key]
                assert (one.value is None) == isinstance(number, str)
                assert one.value is None or number["value"] == pytest.approx(one.value, abs=1e-6)
    sources = {source["title"]: source["results"] for source in read["provenance"]["sources"]}
    assert set(sources) == {row.title for row in report.tables["main"].rows}
    chosen = sources["TIES, strength chosen (shared A)"]
    assert [one["seed"] for one in chosen] == [1, 2, 3, 4, 5] and all(
        one["factor"] and one["address"] for one in chosen
    )
    assert read["provenance"]["commit"] == "0123abc" and read["provenance"]["command"] == plain_context.command


def test_every_figure_has_a_caption_of_its_own(sweep_report):
    text = sweep_report.files["report.md"].decode()
    drawn = [name for name in CAPTIONS if f"figures/{name}.svg" in text]
    assert {"seen_unseen", "tasks", "standing", "balance", "strengths"} <= set(drawn)
    for name in drawn:
        assert text.count(f'<p class="caption">{CAPTIONS[name]}</p>') == 1


def test_a_report_reads_a_picture_by_the_rules_for_other_peoples_files(tmp_path):
    image.imsave(tmp_path / "fits.png", np.zeros((400, 1, 3)))
    image.imsave(tmp_path / "too_long.png", np.zeros((401, 1, 3)))
    assert read_pixels(tmp_path, "fits.png") is not None
    assert read_pixels(tmp_path, "too_long.png") is read_pixels(tmp_path, "gone.png") is None


@pytest.mark.usefixtures("undrawn")
def test_a_report_says_what_the_commonest_answer_would_score(plain_context, tmp_path):
    answers = ("yes", "no", "yes", "maybe")
    write_examples(tmp_path / "test.jsonl", [Example(f"{i}", "Is it?", one) for i, one in enumerate(answers)])
    context = dataclasses.replace(plain_context, questions={"vqav2": tmp_path / "test.jsonl"})
    text = assemble_report(make_results(), context).files["report.md"].decode()
    assert "The commonest answer of a task, given to all of its questions: VQAv2 `yes` 50.0.\n" in text


def test_examples_show_pictures_questions_and_every_answer_unharmed(context, tmp_path):
    report = assemble_report(with_predictions(make_results(), tmp_path), context)
    text, page = report.files["report.md"].decode(), report.files["report.html"].decode()
    assert text.count("| **Expected** |") == len(TASKS)
    assert text.count("| Question |") == len(TASKS)
    assert text.count('alt="question ') <= EXAMPLES_A_TASK * len(TASKS)
    assert "<b>vqav2" not in page and "*blue*|" in re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), page)
    assert "✓" in page and "✗" in page
    shapes = [image.imread(io.BytesIO(data)).shape for name, data in report.files.items() if "examples/" in name]
    assert shapes and all(max(shape[:2]) <= LONGEST_SIDE for shape in shapes)


def test_the_same_scores_give_the_same_bytes_and_what_an_earlier_report_left_goes(context, tmp_path):
    results = with_predictions(make_results(), tmp_path)
    first, second = assemble_report(results, context), assemble_report(results, context)
    assert first.files == second.files
    (tmp_path / "report" / "figures" / "examples").mkdir(parents=True)
    (tmp_path / "report" / "tables").mkdir()
    for name in ("figures/examples/old-1.png", "tables/old.tex"):
        (tmp_path / "report" / name).write_text("old")
    (tmp_path / "report" / "tables" / "notes.txt").write_text("mine")
    write_report(tmp_path / "report", first)
    left = {path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*.*")}
    assert left == {*first.files, "tables/notes.txt"}


@pytest.mark.usefixtures("undrawn")
def test_a_smoke_report_says_first_that_its_numbers_mean_nothing(plain_context):
    smoke = dataclasses.replace(plain_context, profile="smoke")
    files = assemble_report(make_results(), smoke).files
    assert files["report.md"].decode().splitlines()[2].startswith("> **SMOKE RUN: THESE NUMBERS MEAN NOTHING")
    assert "<blockquote>" in files["report.html"].decode()


@pytest.mark.usefixtures("undrawn")
def test_answers_that_could_not_count_are_listed_where_there_are_any(plain_context):
    scores = {"rec": make_score("rec", 10, n_empty=2, n_unparsed=3, n_failed=1)}
    text = assemble_report([SourceResult("zero_shot", "zero_shot", "Zero-shot", scores)], plain_context).files[
        "report.md"
    ]
    assert "| Zero-shot | REC | 2 empty, 3 unparsed, 1 failed |" in text.decode()


@pytest.mark.usefixtures("undrawn")
def test_the_legend_tells_settings_paper_and_address(plain_context):
    settings = {"space": "factors", "prune": {"density": 0.2}, "scale": {"A": None}, "weights": {}}
    result = make_result(
        "merged/robustmerge", "merged", "RobustMerge", {"vqav2": 9}, settings=settings, paper=PAPER_URL
    )
    text = assemble_report([result], plain_context).files["report.md"].decode()
    assert f"- **RobustMerge.** [paper]({PAPER_URL}). `space=factors, prune.density=0.2, scale.A=null" in text
    assert "`merged/robustmerge-1a2b3c4d`" in text


@pytest.mark.usefixtures("undrawn")
def test_the_finding_calls_noise_noise(plain_context):
    text = assemble_report(make_results(), plain_context).files["report.md"].decode()
    seen, unseen = [line for line in text.splitlines() if line.startswith(("- **Seen", "- **Unseen"))][:2]
    assert "RobustMerge is first" in seen and "is outside the noise" in seen
    assert "is **within** the noise" in unseen


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_unseen_tasks_or_pictures_or_predictions_still_stands(context, tmp_path):
    few = dataclasses.replace(context, tasks=TASKS[:2], questions={})
    report = assemble_report(make_results(), few)
    assert "figures/seen_unseen.svg" not in report.files and "figures/tasks.svg" in report.files
    assert "## Examples" not in report.files["report.md"].decode()
    assert "Unseen avg" not in format_summary(report)


def test_a_source_that_lacks_tasks_has_no_average_over_them_and_the_report_stands(context, tmp_path):
    part = {"density": 0.3}
    results = [
        *make_results(),
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 110, "rec": 110}, overrides=part),
        make_result("merged/dare", "merged", "DARE", {"rec": 100}),
    ]
    report = assemble_report(with_predictions(results, tmp_path), context)
    main, differences = report.tables["main"], report.tables["differences"]
    lacking = "RobustMerge (density=0.3)"
    assert cell(main, lacking, "seen_avg").bold and cell(main, lacking, "vqav2").bold
    assert [cell(main, lacking, key).text for key in ("aokvqa", "unseen_avg")] == [MISSING] * 2
    assert [cell(main, "DARE", key).text for key in ("vqav2", "seen_avg", "unseen_avg")] == [MISSING] * 3
    assert cell(differences, "DARE", "seen_avg").text == cell(differences, lacking, "unseen_avg").text == MISSING
    figure = report.files["figures/seen_unseen.svg"].decode()
    assert "Individual (seen only)" in figure and figure.count("(seen only)") == 1
    assert "DARE" not in figure and "DARE" in report.files["figures/tasks.svg"].decode()


@pytest.mark.usefixtures("undrawn")
def test_merged_models_of_which_no_two_share_an_average_are_not_compared(plain_context):
    results = [
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 80}),
        make_result("merged/dare", "merged", "DARE", {"rec": 60, "aokvqa": 10}),
    ]
    report = assemble_report(results, plain_context)
    assert "differences" not in report.tables and "figures/seen_unseen.svg" not in report.files
    assert "Are the differences real" not in report.files["report.md"].decode()


def tasks_figure(titles, context) -> str:
    scores = [{"vqav2": 9, "rec": i, "aokvqa": i} for i in range(len(titles))]
    results = [make_result(f"merged/m{i}", "merged", title, scores[i]) for i, title in enumerate(titles)]
    (drawn,) = [one for one in draw_figures(tables_of(results, context)[0]) if one.name == "tasks"]
    return drawn.svg.decode()


def axes_width(figure: str) -> float:
    left, right = re.search(r'id="patch_2">\s*<path d="M ([\d.]+) \S+ \nL ([\d.]+) ', figure).groups()
    return float(right) - float(left)


def test_long_titles_take_no_room_from_the_axes(context):
    label = "RobustMerge (prune.density={}, scale.normalize=false)"
    long = tasks_figure([label.format(i) for i in range(8)], context)
    assert axes_width(long) > axes_width(tasks_figure(["A", "B"], context))


def test_the_legend_has_the_order_of_the_rows_whatever_they_lack(context):
    results = [
        make_result("multi_task", "multi_task", "Multi-task", {"rec": 1}),
        make_result("merged/dare", "merged", "DARE", {"aokvqa": 1}),
        make_result("merged/robustmerge", "merged", "RobustMerge", {"vqav2": 1}),
    ]
    figure = draw_figures(tables_of(results, context)[0])[0].svg.decode()
    assert re.findall("<!-- (Multi-task|DARE|RobustMerge) -->", figure) == ["Multi-task", "DARE", "RobustMerge"]


def test_every_source_of_a_large_table_is_drawn_differently(context):
    kinds = ["zero_shot"] * 3 + ["individual"] * 3 + ["multi_task"] * 3 + ["merged"] * 20
    results = [make_result(f"s{i}", kind, f"s{i}", {"vqav2": i}) for i, kind in enumerate(kinds)]
    main, _ = tables_of(results, context)
    styles = assign_styles(main.rows)
    assert len(set(styles)) == len(styles) == 29


def test_nothing_to_report_is_said(plain_context):
    with pytest.raises(UserError, match="no score"):
        assemble_report([], plain_context)


def test_a_title_cannot_break_the_page(context):
    page = make_page("text", dataclasses.replace(context, benchmark="<script>"), {})
    assert "<script>" not in page


def test_scoring_imports_neither_figures_nor_wandb_nor_torch():
    code = (
        "import sys, eval.score, eval.predict, eval.statistics, eval.report.tables;"
        "print([name for name in ('torch', 'matplotlib', 'markdown', 'wandb', 'hydra') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
