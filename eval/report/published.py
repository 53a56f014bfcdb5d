"""Tables of the paper's published values, kept apart from what is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report.results import REFERENCE_KINDS, ROBUSTMERGE, Context, ResultGroup
from eval.report.tables import GENERAL, Cell, Column, Row, Table, list_columns
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


def read_published(path: Path) -> dict[str, Any]:
    """Read the paper's table 2 and its `url`. Raises UserError if the file does not hold published values."""
    try:
        values = read_yaml(path, "published values")
        return {**values["table_2_mm_mergebench"], "url": values["paper"]["url"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of published values: {error!r}") from error


def published_table(groups: Sequence[ResultGroup], context: Context) -> Table:
    """The paper's table 2 for the tasks of this report, with a row for each evaluated method that it lacks.

    Averages are the printed ones; they are shown only if the report has all the tasks that they are over.
    """
    published = read_published(context.published)
    columns = tuple(column for column in list_columns(context) if column.heading != GENERAL)
    titles = name_rows(groups)
    rows = []
    for name in sorted(dict.fromkeys([*REFERENCE_KINDS, *published["rows"], *titles]), key=ROBUSTMERGE.__eq__):
        values = _list_values(published, name)
        title = titles.get(name) or METHOD_TITLES.get(name, name.replace("_", " ").title())
        rows.append(Row(title, _find_kind(name), tuple(_make_cell(values, column, published) for column in columns)))
    title = "Published values (table 2 of the paper; LLaVA-1.5-7B, its own data), in %: not measured here"
    return Table("published", title, columns, tuple(rows))


def name_rows(groups: Sequence[ResultGroup]) -> dict[str, str]:
    """The titles of the groups by the paper's names of its rows."""
    return {group.first.method or group.kind: group.first.title for group in groups if group.kind != "adapter"}


def _find_kind(name: str) -> str:
    return "published_reference" if name in REFERENCE_KINDS else "published"


def _list_values(published: Mapping[str, Any], name: str) -> dict[str, float]:
    """The values of a row by task name, with the averages as `seen_avg` and `unseen_avg`."""
    row = published["rows"].get(name, {})
    values = {key: row[key] for key in ("seen_avg", "unseen_avg") if key in row}
    for split in ("seen", "unseen"):
        values.update(zip(published[split], row.get(split, ()), strict=False))
    return values


def _make_cell(values: Mapping[str, float], column: Column, published: Mapping[str, Any]) -> Cell:
    if column.is_average and set(published[column.average_over]) != set(column.tasks):
        return Cell()
    value = values.get(column.key)
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
