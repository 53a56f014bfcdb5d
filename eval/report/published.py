"""The paper's own values as a table, apart from what is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.report.results import Context, ResultGroup
from eval.report.tables import REFERENCES, Cell, Column, Row, Table, list_columns
from robustmerge.stage.settings import UserError


def read_published(path: Path) -> dict[str, Any]:
    """The file of published values. Raises UserError if it is not one."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {**found["table_2_mm_mergebench"], "url": found["paper"]["url"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of published values: {error!r}") from error


def published_table(rows: Sequence[ResultGroup], context: Context) -> Table:
    """The paper's table 2 for the tasks of this report, and a row for each method of ours that it lacks.

    Averages are the printed ones; they are shown only if the report has all the tasks that they are over.
    """
    published = read_published(context.published)
    columns = list_columns(context)
    titles = {_published_name(row): row.first.title for row in rows if row.kind != "adapter"}
    filled = []
    for name in sorted(dict.fromkeys([*REFERENCES, *published["rows"], *titles]), key="robustmerge".__eq__):
        values = _published_values(published, name)
        cells = tuple(_published_cell(values, column, published) for column in columns)
        filled.append(Row(titles.get(name, _titled(name)), _published_kind(name), cells))
    title = "Published values (table 2 of the paper; LLaVA-1.5-7B, its own data), in %: not measured here"
    return Table("published", title, columns, tuple(filled))


def _published_name(row: ResultGroup) -> str:
    return row.first.name if row.kind == "merged" else row.kind


def _published_kind(name: str) -> str:
    return "published_reference" if name in REFERENCES else "published"


def _titled(name: str) -> str:
    known = {
        "dare": "DARE",
        "ties": "TIES",
        "pcb": "PCB",
        "zero_shot": "Zero-shot",
        "multi_task": "Multi-task",
    }
    return known.get(name, "RobustMerge" if name == "robustmerge" else name.replace("_", " ").title())


def _published_values(published: Mapping[str, Any], name: str) -> dict[str, float]:
    """By task name; the averages as `seen_avg` and `unseen_avg`."""
    row = published["rows"].get(name, {})
    values = {key: row[key] for key in ("seen_avg", "unseen_avg") if key in row}
    for group in ("seen", "unseen"):
        values.update(zip(published[group], row.get(group, ()), strict=False))
    return values


def _published_cell(values: Mapping[str, float], column: Column, published: Mapping[str, Any]) -> Cell:
    whole = set(published[column.key.removesuffix("_avg")]) == set(column.tasks) if column.is_average else True
    value = values.get(column.key) if whole else None
    return Cell() if value is None else Cell(f"{value:.2f}", value)
