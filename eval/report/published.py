"""Tables of the paper's published values, kept apart from what is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.results import REFERENCE_KINDS, ROBUSTMERGE, Context, ResultGroup
from eval.report.tables import GENERAL, Cell, Column, Row, Table, list_columns
from eval.settings import PaperTable
from robustmerge.stage.settings import UserError
from robustmerge.stage.yaml_files import read_yaml

METHOD_TITLES = {
    "dare": "DARE",
    "ties": "TIES",
    "pcb": "PCB",
    "robustmerge": "RobustMerge",
    "zero_shot": "Zero-shot",
    "multi_task": "Multi-task",
}


@dataclass(frozen=True)
class Published:
    """One of the paper's tables. number: `2`; of: what it is about; url: the paper's.

    seen, unseen: our names of the paper's tasks, in its order. rows: values by row and column, averages as `seen_avg`
    and `unseen_avg`; a row has only what the paper prints. footnote: what to know of the printed table.
    """

    number: str
    of: str
    url: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]
    footnote: str = ""

    def value(self, row: str, column: Column) -> float | None:
        """The printed value; None where there is none, or an average is over other tasks than the column's."""
        if column.is_average and set(getattr(self, column.average_over)) != set(column.tasks):
            return None
        return self.rows.get(row, {}).get(column.key)


def read_published(path: Path, name: str = PaperTable.name) -> Published:
    """Read one of the paper's tables 2, 4, 5, 6, 7, 9. Raises UserError if the file does not hold it."""
    try:
        values = read_yaml(path, "published values")
        table = values[name]
        named = table if "seen" in table else values[PaperTable.name]
        tasks = {split: tuple(named[split]) for split in ("seen", "unseen")}
        rows = {row: _by_column(printed, tasks) for row, printed in table["rows"].items()}
        number, footnote = name.split("_")[1], table.get("footnote", "")
        return Published(number, table["of"], values["paper"]["url"], **tasks, rows=rows, footnote=footnote)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a file of published values with {name}: {error!r}") from error


def _by_column(printed: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> dict[str, float]:
    values = {key: printed[key] for key in ("seen_avg", "unseen_avg") if key in printed}
    for split, names in tasks.items():
        values |= dict(zip(names, printed.get(split, ()), strict=False))
    return values


def published_table(groups: Sequence[ResultGroup], context: Context) -> Table:
    """The paper's table for the tasks of this report, with a row for each evaluated method that it lacks.

    Averages are the printed ones; they are shown only if the report has all the tasks that they are over.
    """
    published = read_published(context.published, context.paper_table.name)
    columns = tuple(column for column in list_columns(context) if column.heading != GENERAL)
    titles = name_rows(groups, context)
    names = dict.fromkeys([*published.rows, *titles])
    ordered = [name for name in REFERENCE_KINDS if name in published.rows]
    ordered += [name for name in names if name not in REFERENCE_KINDS]
    rows = []
    for name in sorted(ordered, key=ROBUSTMERGE.__eq__):
        cells = tuple(_make_cell(published.value(name, column)) for column in columns)
        title = titles.get(name) or METHOD_TITLES.get(name) or name.replace("_", " ").title()
        rows.append(Row(title, _find_kind(name), cells))
    title = f"Published values (table {published.number} of the paper; {published.of}), in %: not measured here"
    return Table("published", title, columns, tuple(rows))


def row_in_paper(group: ResultGroup, context: Context) -> str:
    """The name that a source has as a row of the paper's table, if the paper has it; searched weights it has not."""
    first = group.first
    name = first.source if first.search else first.method or group.kind
    return context.paper_table.rows.get(name, name)


def name_rows(groups: Sequence[ResultGroup], context: Context) -> dict[str, str]:
    """The titles of the groups by the paper's names of its rows."""
    return {row_in_paper(group, context): group.first.title for group in groups if group.kind != "adapter"}


def _find_kind(name: str) -> str:
    return "published_reference" if name in REFERENCE_KINDS else "published"


def _make_cell(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{value:.2f}", value)


def published_general_table(path: Path, titles: Mapping[str, str]) -> Table:
    """The paper's table 3. titles: of the rows, by name. Raises UserError if the file has no such table."""
    try:
        table = read_yaml(path, "published values")["table_3_general_benchmarks"]
        benchmarks = [str(name) for name in table["columns"]]
        rows = {str(name): [float(value) for value in values] for name, values in table["rows"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has no table 3 of published values: {error!r}") from error
    columns = tuple(Column(name, f"{name} (published)", (name,)) for name in benchmarks)
    cells = {name: tuple(Cell(f"{value:.1f}", value) for value in values) for name, values in rows.items()}
    title = "Published values (table 3 of the paper; LLaVA-1.5-7B), in %, MME in points: not measured here"
    filled = tuple(Row(titles.get(name, name), _find_kind(name), cells[name]) for name in rows)
    return Table("general_published", title, columns, filled, bars=False)
