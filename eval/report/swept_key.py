"""A sweep over one key whose values have an order: how the scores and ranks of the methods go with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.report.estimates import Estimates
from eval.report.ranking import list_ranks, score_cell
from eval.report.results import CHOSEN, Context, ResultGroup, SweptKey
from eval.report.tables import Cell, Column, Row, Table, list_averages, make_row

SWEPT = {"seen": "swept", "unseen": "swept_unseen"}  # the names of the tables, by the tasks of their average
Line = dict[str, ResultGroup]  # one source by value, at the chosen strength where it has one; "" is all values


def swept_tables(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> list[Table]:
    """The averages of every source at each value of the swept key, in the tables that SWEPT names.

    Each merged model has its rank beside it, unless there is only one. An average is left out unless merged models have
    it at two values.
    """
    if context.swept is None:
        return []
    tables = [_make_table(groups, average, context.swept, estimates) for average in list_averages(context)]
    return [table for table in tables if table is not None]


def _make_table(groups: Sequence[ResultGroup], average: Column, swept: SweptKey, estimates: Estimates) -> Table | None:
    lines = _list_lines([group for group in groups if estimates.has(group.title, average.tasks)], swept)
    at_values = {value: [line.get(value, line.get("")) for line in lines] for value in swept.titles}
    counts = [len(_list_merged(found)) for found in at_values.values()]
    if sum(map(bool, counts)) < 2:
        return None
    columns: list[Column] = []
    cells: list[list[Cell]] = [[] for _ in lines]
    for value, found in at_values.items():
        title = swept.titles[value]
        heading = title[:1].upper() + title[1:]
        columns.append(replace(average, key=f"{average.key}_{value}", heading=heading))
        for row, group in zip(cells, found, strict=True):
            row.append(score_cell(group, average, estimates) if group else Cell())
        if max(counts) > 1:
            columns.append(Column(f"rank_{value}", "Rank", heading=heading))
            for row, cell in zip(cells, list_ranks(found, average, estimates), strict=True):
                row.append(cell)
    are_chosen = {group.first.variant == CHOSEN for line in lines for group in _list_merged(line.values())}
    rows = [_make_row(line, row, are_chosen, swept) for line, row in zip(lines, cells, strict=True)]
    strength = ", at the strength chosen on val" if are_chosen == {True} else ""
    title = f"{average.average_over.capitalize()} average of every method{strength}, at each value of the swept key"
    return Table(SWEPT[average.average_over], title, tuple(columns), tuple(rows), bars=False)


def _list_lines(groups: Sequence[ResultGroup], swept: SweptKey) -> list[Line]:
    """The groups of each source by value; a chosen strength comes after its default in `groups`, and replaces it."""
    key = swept.key.removeprefix("merge.")  # as the settings of a method are named
    lines: dict[str, Line] = {}
    for group in groups:
        first = group.first
        others = sorted((name, value) for name, value in first.overrides.items() if name != key)
        name = repr((first.kind, first.source, others))
        taken = lines.setdefault(name, {}).get(first.swept)
        if taken is not None and taken.first.variant == first.variant:  # only the address tells them apart
            name = repr((name, first.address))
        lines.setdefault(name, {})[first.swept] = group
    return list(lines.values())


def _list_merged(groups: Iterable[ResultGroup | None]) -> list[ResultGroup]:
    return [group for group in groups if group is not None and group.kind == "merged"]


def _make_row(line: Line, cells: Sequence[Cell], are_chosen: set[bool], swept: SweptKey) -> Row:
    """A row; its strength is marked as chosen only if those of others are not."""
    first = next(iter(line.values()))
    row = make_row(first, cells)
    title = first.label if swept.is_facet else first.first.title
    return replace(row, title=title, label=title, block="", facet="", chosen=row.chosen and len(are_chosen) > 1)


def zero_shot_ratios(table: Table, swept: SweptKey) -> dict[str, float]:
    """Zero-shot over individual, by value of the key; empty where zero-shot is the same at all of them."""
    averages = [index for index, column in enumerate(table.columns) if column.is_average]
    values = {row.kind: [row.cells[index].value for index in averages] for row in table.rows}
    zero_shot, individual = (values.get(kind, []) for kind in ("zero_shot", "individual"))
    pairs = zip(swept.titles, zero_shot, individual, strict=False)
    ratios = {value: base / expert for value, base, expert in pairs if base is not None and expert}
    return ratios if len(set(zero_shot)) > 1 else {}
