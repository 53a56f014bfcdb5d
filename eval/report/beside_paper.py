"""Our averages beside those that the paper prints for the same methods, and where the order of the methods differs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from eval.report.estimates import Estimates
from eval.report.published import read_published, row_in_paper
from eval.report.ranking import score_cell
from eval.report.results import Context, ResultGroup, lower_first
from eval.report.tables import Cell, Column, Row, Table, list_averages, make_row


def beside_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """The averages of all sources that the paper's table has, each beside the printed one.

    Sources at a value of a swept key, with changed settings or with searched weights are left out, as the paper lacks
    them. None unless the paper prints an average over exactly the tasks of this report for two merged models.
    """
    published = read_published(context.published, context.paper_table.name)
    averages = list_averages(context)
    rows = []
    for group in groups:
        name = row_in_paper(group, context)
        printed = [published.value(name, column) for column in averages]
        first, has_value = group.first, any(x is not None for x in printed)
        if has_value and not first.overrides and not first.swept:
            cells: list[Cell] = []
            for column, value in zip(averages, printed, strict=True):
                published_cell = Cell() if value is None else Cell(f"{value:.2f}", value)
                cells += [score_cell(group, column, estimates), published_cell]
            rows.append(make_row(group, cells))
    if sum(row.kind == "merged" for row in rows) < 2:
        return None
    columns: list[Column] = []
    for column in averages:
        heading = f"{column.average_over.capitalize()} average"
        columns += [
            replace(column, title="Here", heading=heading),
            Column(f"{column.key}_published", "Published", heading=heading),
        ]
    title = f"Averages beside table {published.number} of the paper ({published.of}), whose values are published ones"
    return Table("beside", title, tuple(columns), tuple(rows), bars=False)


def describe_orders(table: Table) -> list[tuple[str, str]]:
    """For each average the order of the merged models in the paper and here: its heading and the words.

    Only models with both values count, and blocks with at least two of them; blocks with the same order stand together.
    """
    sentences = []
    for index, column in enumerate(table.columns):
        orders: dict[tuple[str, str], list[str]] = {}
        for block in dict.fromkeys(row.block for row in table.rows if column.is_average and row.kind == "merged"):
            rows = [row for row in table.rows if row.kind == "merged" and row.block == block]
            rows = [row for row in rows if None not in (row.cells[index].value, row.cells[index + 1].value)]
            if len(rows) > 1:
                orders.setdefault((_order(rows, index + 1), _order(rows, index)), []).append(block)
        for there, alike in itertools.groupby(orders.items(), key=lambda item: item[0][0]):
            found = [(here, "; ".join(map(lower_first, blocks))) for (_, here), blocks in alike]
            here = " | ".join(
                ("the same" if order == there else order) + (f" ({at})" if at else "") for order, at in found
            )
            sentences.append((column.heading, f"in the paper {there}; here {here}"))
    return sentences


def _order(rows: Sequence[Row], index: int) -> str:
    best_first = sorted(rows, key=lambda row: -(row.cells[index].value or 0.0))
    return ", ".join(row.label for row in best_first)
