"""The report stage: everything that the scores say, as Markdown, one HTML page, LaTeX, CSV, figures and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.examples import Shown, pick_examples
from eval.figures import Drawn, draw_figures
from eval.formats import format_csv, format_html, format_latex, format_markdown, format_text
from eval.page import make_page
from eval.results import Context, SourceResult, arrange_rows
from eval.sections import compose
from eval.tables import Table, difference_table, main_table, published_table, resample
from robustmerge.runs import write_atomically
from robustmerge.settings import UserError

OWN_FOLDERS = ("tables", "figures", "figures/examples")
OWN_SUFFIXES = (".tex", ".csv", ".png", ".svg")


@dataclass(frozen=True)
class Report:
    """A report before it is written. files: content by path inside the folder."""

    tables: Mapping[str, Table]
    files: Mapping[str, bytes]


def write_report(folder: Path, results: Sequence[SourceResult], context: Context) -> Path:
    """Write the report into `folder` and return the path of report.md.

    It is derived: written again at each call, the same bytes from the same scores. Tables and figures of an earlier
    report that this one does not have are removed. Raises UserError if there is nothing to report.
    """
    return write_files(Path(folder), make_report(results, context))


def make_report(results: Sequence[SourceResult], context: Context) -> Report:
    """Everything that a report holds, in memory."""
    if not results:
        raise UserError("nothing to report: there is no score")
    rows = arrange_rows(results)
    resampled = resample(rows, context)
    tables = {"main": main_table(rows, context, resampled), "published": published_table(rows, context)}
    differences = difference_table(rows, context, resampled)
    if differences is not None:
        tables["differences"] = differences
    figures, examples = draw_figures(tables["main"]), pick_examples(rows, context)
    files = {**_table_files(tables), **_picture_files(figures, examples)}
    parts = (rows, context, resampled, tables, figures, examples)
    files["report.md"] = compose(*parts, show=format_markdown).encode()
    files["report.html"] = make_page(compose(*parts, show=format_html), context, files).encode()
    return Report(tables, files)


def _table_files(tables: Mapping[str, Table]) -> dict[str, bytes]:
    files = {}
    for name, table in tables.items():
        files[f"tables/{name}.tex"] = format_latex(table).encode()
        files[f"tables/{name}.csv"] = format_csv(table).encode()
    return files


def _picture_files(figures: Sequence[Drawn], examples: Mapping[str, Sequence[Shown]]) -> dict[str, bytes]:
    files = {}
    for figure in figures:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
    for task, shown in examples.items():
        for number, one in enumerate(shown, start=1):
            if one.picture is not None:
                files[f"figures/examples/{task}-{number}.png"] = one.picture
    return files


def write_files(folder: Path, report: Report) -> Path:
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


def show_summary(report: Report, width: int = 110) -> str:
    """The main table as text for a terminal; `*` marks what is bold elsewhere."""
    table = report.tables["main"]
    starred = any(cell.bold for row in table.rows for cell in row.cells)
    note = "* best merged value, its lead over the second best outside the 95 % interval\n" if starred else ""
    return f"{table.title}\n\n{format_text(table, width)}{note}"
