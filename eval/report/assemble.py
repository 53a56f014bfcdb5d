"""The report stage: writes the report of a set of scores: Markdown, one HTML page, LaTeX, CSV, JSON, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.report.balance import balance_table
from eval.report.beside_paper import beside_table
from eval.report.contact_sheet import draw_contact_sheet
from eval.report.curves import draw_strengths, draw_swept
from eval.report.estimates import Estimates
from eval.report.examples import ShownQuestion, pick_examples
from eval.report.figures import draw_balance, draw_figures, draw_ranking, draw_standing
from eval.report.formats import format_csv, format_html, format_latex, format_markdown, format_text
from eval.report.general_tables import general_tables
from eval.report.loss_curves import draw_losses
from eval.report.notes import format_constants, format_partial_notice
from eval.report.numbers import format_json
from eval.report.page import make_page
from eval.report.published import published_table
from eval.report.ranking import ranking_table
from eval.report.results import Context, ResultGroup, SourceResult, group_results, list_seeds
from eval.report.secondary_tables import further_tables
from eval.report.section_training import list_trained, training_table
from eval.report.sections import Content, compose
from eval.report.standing import describe_standing, difference_table, pairs_table, standing_table
from eval.report.swept_key import SWEPT, swept_tables, zero_shot_ratios
from eval.report.tables import Table, main_table, seeds_table
from robustmerge.stage.drawing import RenderedFigure
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import one_line

# What an earlier report may have left: removed unless it is written again.
REPORT_FOLDERS = ("tables", "figures", "figures/examples")
REPORT_SUFFIXES = (".tex", ".csv", ".png", ".svg", ".pdf")
LARGE = 14  # rows of a main table of which the terminal shows the averages only


@dataclass(frozen=True)
class Report:
    """A report in memory. files: content by path inside the report's folder.

    partial_notice: a warning if only some of the questions were asked, else "". examples: the questions shown, by task.
    """

    tables: Mapping[str, Table]
    files: Mapping[str, bytes]
    partial_notice: str = ""
    examples: Mapping[str, Sequence[ShownQuestion]] = field(default_factory=dict)


def assemble_report(results: Sequence[SourceResult], context: Context) -> Report:
    """Build a report in memory; the same scores give the same bytes.

    Raises UserError if there is nothing to report.
    """
    if not results:
        raise UserError("nothing to report: there is no score")
    groups = group_results(results)
    estimates = Estimates(groups, [task.name for task in context.tasks], context.bootstrap)
    tables = _make_tables(groups, context, estimates)
    figures, examples = draw_figures(tables["main"]), pick_examples(groups, context)
    sheet = draw_contact_sheet(context.question_files())
    if "standing" in tables and (len(list_seeds(groups)) > 1 or any(group.block for group in groups)):
        figures.append(draw_standing(tables["standing"]))
    if (strengths := draw_strengths(groups, tables["main"])) is not None:
        figures.append(strengths)
    if "balance" in tables:
        figures.append(draw_balance(tables["balance"]))
    if "ranking" in tables:
        figures.append(draw_ranking(tables["ranking"]))
    if trained := list_trained(groups, context):
        tables["training"] = training_table(trained)
        figures.append(draw_losses(trained))
    swept = [tables[name] for name in SWEPT.values() if name in tables]
    if context.swept is not None and swept:
        ratios = zero_shot_ratios(swept[0], context.swept)
        figures += [draw_swept(table, context.swept, ratios) for table in swept]
    files = {**_format_tables(tables), **_list_pictures(figures, examples, context.pdf)}
    if sheet is not None:
        files["figures/sheet.png"] = sheet
    files["report.json"] = format_json(tables, groups, context).encode()
    constants = format_constants(context)
    content = Content(groups, context, estimates, tables, figures, examples, sheet is not None, constants, trained)
    files["report.md"] = compose(content, format_markdown).encode()
    files["report.html"] = make_page(compose(content, format_html), context, files).encode()
    return Report(tables, files, format_partial_notice(groups, context), examples)


def _make_tables(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> dict[str, Table]:
    protocol = "" if context.protocol == "corrected" else context.protocol
    main = main_table(groups, context, estimates, protocol=protocol)
    tables = {"main": main, "published": published_table(groups, context)}
    tables |= {table.name: table for table in swept_tables(groups, context, estimates)}
    for make in (
        beside_table,
        ranking_table,
        balance_table,
        difference_table,
        pairs_table,
        standing_table,
        seeds_table,
    ):
        table = make(groups, context, estimates)
        if table is not None:
            tables[table.name] = table
    return tables | further_tables(groups, context) | general_tables(groups, context, estimates)


def _format_tables(tables: Mapping[str, Table]) -> dict[str, bytes]:
    files = {}
    for name, table in tables.items():
        files[f"tables/{name}.tex"] = format_latex(table).encode()
        files[f"tables/{name}.csv"] = format_csv(table).encode()
    return files


def _list_pictures(
    figures: Sequence[RenderedFigure], examples: Mapping[str, Sequence[ShownQuestion]], pdf: bool
) -> dict[str, bytes]:
    files = {}
    for figure in figures:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
        if pdf:
            files[f"figures/{figure.name}.pdf"] = figure.as_pdf()
    for task, questions in examples.items():
        for number, question in enumerate(questions, start=1):
            if question.picture is not None:
                files[f"figures/examples/{task}-{number}.png"] = question.picture
    return files


def write_report(folder: Path, report: Report) -> Path:
    """Write every file atomically, report.md last, and remove what an earlier report left; returns report.md."""
    for name, content in sorted(report.files.items(), key=lambda item: item[0] == "report.md"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    for name in REPORT_FOLDERS:
        for path in (folder / name).glob("*"):
            if path.suffix in REPORT_SUFFIXES and f"{name}/{path.name}" not in report.files:
                path.unlink()
    return folder / "report.md"


def format_summary(report: Report, width: int = 110) -> str:
    """The main table as text for a terminal; `*` marks what is bold elsewhere.

    Of a large table only the averages, and then where RobustMerge stands, in words.
    """
    table = report.tables["main"]
    is_large = len(table.rows) > LARGE
    has_bold = any(cell.bold for row in table.rows for cell in row.cells)
    block = " of its block" if any(row.block for row in table.rows) else ""
    note = f"* best merged value{block}, its lead over the second best outside the noise\n" if has_bold else ""
    text = format_text(table, width, averages_only=is_large)
    verdicts = []
    if is_large and "standing" in report.tables:
        verdicts = [f"{place}: {sentence}" for place, sentence in describe_standing(report.tables["standing"])]
    notice = [f"{one_line(report.partial_notice)}\n"] if report.partial_notice else []
    return "\n".join([*notice, f"{one_line(table.title)}\n\n{text}{note}", *map(one_line, verdicts)])
