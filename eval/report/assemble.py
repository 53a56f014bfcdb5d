"""The report stage: everything that the scores say, as Markdown, one HTML page, LaTeX, CSV, figures and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report.contact_sheet import draw_contact_sheet
from eval.report.counts_and_parts import further_tables
from eval.report.estimates import Estimates
from eval.report.examples import Shown, pick_examples
from eval.report.figures import RenderedFigure, draw_figures, draw_standing
from eval.report.formats import format_csv, format_html, format_latex, format_markdown, format_text
from eval.report.general_tables import general_tables
from eval.report.notes import format_partial_notice
from eval.report.page import make_page
from eval.report.published import published_table
from eval.report.results import Context, SourceResult, group_results, list_seeds
from eval.report.sections import compose
from eval.report.standing import describe_standing, difference_table, pairs_table, standing_table
from eval.report.tables import Table, main_table, seeds_table
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError

OWN_FOLDERS = ("tables", "figures", "figures/examples")
LARGE = 14  # rows
OWN_SUFFIXES = (".tex", ".csv", ".png", ".svg")


@dataclass(frozen=True)
class Report:
    """A report before it is written. files: content by path inside the folder. look: that it is only a look, if so."""

    tables: Mapping[str, Table]
    files: Mapping[str, bytes]
    look: str = ""


def assemble_report(results: Sequence[SourceResult], context: Context) -> Report:
    """Everything that a report holds, in memory: the same bytes from the same scores.

    Raises UserError if there is nothing to report.
    """
    if not results:
        raise UserError("nothing to report: there is no score")
    rows = group_results(results)
    estimates = Estimates(rows, [task.name for task in context.tasks], context.bootstrap)
    protocol = "" if context.protocol == "corrected" else context.protocol
    main = main_table(rows, context, estimates, protocol=protocol)
    tables = {"main": main, "published": published_table(rows, context)}
    for make in (difference_table, pairs_table, standing_table, seeds_table):
        table = make(rows, context, estimates)
        if table is not None:
            tables[table.name] = table
    tables |= further_tables(rows, context) | general_tables(context)
    figures, examples, sheet = draw_figures(tables["main"]), pick_examples(rows, context), draw_contact_sheet(context)
    if "standing" in tables and (len(list_seeds(rows)) > 1 or any(row.block for row in rows)):
        figures.append(draw_standing(tables["standing"]))
    files = {**_table_files(tables), **_picture_files(figures, examples)}
    if sheet is not None:
        files["figures/sheet.png"] = sheet
    parts = (rows, context, estimates, tables, figures, examples, sheet is not None)
    files["report.md"] = compose(*parts, show=format_markdown).encode()
    files["report.html"] = make_page(compose(*parts, show=format_html), context, files).encode()
    return Report(tables, files, format_partial_notice(rows, context))


def _table_files(tables: Mapping[str, Table]) -> dict[str, bytes]:
    files = {}
    for name, table in tables.items():
        files[f"tables/{name}.tex"] = format_latex(table).encode()
        files[f"tables/{name}.csv"] = format_csv(table).encode()
    return files


def _picture_files(figures: Sequence[RenderedFigure], examples: Mapping[str, Sequence[Shown]]) -> dict[str, bytes]:
    files = {}
    for figure in figures:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
    for task, shown in examples.items():
        for number, one in enumerate(shown, start=1):
            if one.picture is not None:
                files[f"figures/examples/{task}-{number}.png"] = one.picture
    return files


def write_report(folder: Path, report: Report) -> Path:
    """Write every file whole, report.md last, and remove what an earlier report left."""
    for name, content in sorted(report.files.items(), key=lambda item: item[0] == "report.md"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    for own in OWN_FOLDERS:
        for path in (folder / own).glob("*"):
            if path.suffix in OWN_SUFFIXES and f"{own}/{path.name}" not in report.files:
                path.unlink()
    return folder / "report.md"


def _is_large(report: Report) -> bool:
    return len(report.tables["main"].rows) > LARGE


def format_summary(report: Report, width: int = 110) -> str:
    """The main table as text for a terminal; `*` marks what is bold elsewhere.

    Of a large table the averages, and in words where RobustMerge stands.
    """
    table = report.tables["main"]
    starred = any(cell.bold for row in table.rows for cell in row.cells)
    block = " of its block" if any(row.block for row in table.rows) else ""
    note = f"* best merged value{block}, its lead over the second best outside the noise\n" if starred else ""
    text = format_text(table, width, averages_only=_is_large(report))
    told = []
    if _is_large(report) and "standing" in report.tables:
        told = [f"{place}: {words}" for place, words in describe_standing(report.tables["standing"])]
    look = [f"{report.look}\n"] if report.look else []
    return "\n".join([*look, f"{table.title}\n\n{text}{note}", *told])
