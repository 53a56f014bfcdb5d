"""Every number of a report as JSON, with what it rests on: sources with their addresses, seeds, commit, command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.results import Context, ResultGroup, SourceResult
from eval.report.tables import Cell, Table
from robustmerge.stage.text import plain, shorten

DIGITS = 6  # after the point; of per cent
LONGEST = 1000  # characters of a text


def format_json(tables: Mapping[str, Table], groups: Sequence[ResultGroup], context: Context) -> str:
    """The tables by name, and their provenance; values that are missing are left out."""
    provenance = {
        "benchmark": context.benchmark,
        "model": context.model,
        "profile": context.profile,
        "protocol": context.protocol,
        "command": context.command,
        "commit": context.commit,
        "with_uncommitted_changes": context.dirty,
        "seeds": dict(context.seeds),
        "bootstrap": dataclasses.asdict(context.bootstrap),
        "tasks": {task.name: {"title": task.title, "seen": task.seen, "metric": task.metric} for task in context.tasks},
        "sources": [_describe_source(group) for group in groups],
    }
    whole = {"provenance": provenance, "tables": {name: _describe_table(table) for name, table in tables.items()}}
    return json.dumps(_shorten(whole), indent=1, ensure_ascii=False) + "\n"


def _shorten(value: Any) -> Any:
    """The same value with long texts, of other people's files, shortened."""
    if isinstance(value, Mapping):
        return {_shorten(key): _shorten(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shorten(one) for one in value]
    return shorten(plain(value), LONGEST) if isinstance(value, str) else value


def _describe_source(group: ResultGroup) -> dict[str, Any]:
    first = group.first
    described = {"title": group.title, "kind": group.kind, "settings": dict(first.settings), "paper": first.paper}
    return described | {"results": [_describe_result(one) for one in group.results]}


def _describe_result(result: SourceResult) -> dict[str, Any]:
    described: dict[str, Any] = {"seed": result.seed, "address": result.address}
    if result.choice is not None:
        described |= {"factor": result.choice.factor, "strength": result.choice.strength}
    return described


def _describe_table(table: Table) -> dict[str, Any]:
    rows = [
        {"title": row.title, "kind": row.kind, "block": row.block}
        | {column.key: _describe_cell(cell) for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    ]
    columns = {column.key: f"{column.heading}: {column.title}".removeprefix(": ") for column in table.columns}
    return {"title": table.title, "columns": columns, "rows": rows}


def _describe_cell(cell: Cell) -> Any:
    """The numbers of a cell by name, or its text where it has none."""
    numbers = {key: value for key, value in vars(cell).items() if key not in ("text", "bold") and value is not None}
    if not numbers:
        return cell.text
    return {key: round(value, DIGITS) for key, value in numbers.items()} | ({"bold": True} if cell.bold else {})
