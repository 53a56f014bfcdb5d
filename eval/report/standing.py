"""Which merged model is better than which: paired differences within a block, whose rows differ in the method only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from eval.report.estimates import Estimates
from eval.report.results import Context, ResultGroup
from eval.report.tables import Cell, Column, Row, Table, list_averages, list_blocks, make_row, rank_merged
from eval.statistics import Difference

OURS = "robustmerge"


def difference_table(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """The best merged model of each average against every other one of its block; None if no block has two."""
    blocks = list_blocks(rows)
    ranked = {
        (block, column.key): [row.key for row in rank_merged(members, column, estimates)]
        for block, members in blocks.items()
        for column in list_averages(context)
    }
    averages = tuple(
        column for column in list_averages(context) if any(len(ranked[block, column.key]) > 1 for block in blocks)
    )
    if not averages:
        return None
    filled = [
        make_row(row, [_against_best(row, column, ranked[block, column.key], estimates) for column in averages])
        for block, members in blocks.items()
        for row in members
    ]
    among = " of each average" + (" in its block" if len(blocks) > 1 else "")
    several = any(cell.deviation is not None for row in filled for cell in row.cells)
    what = "95 % intervals over questions and over seeds" if several else "95 % interval, two-sided p"
    title = f"Merged models against the best one{among}: paired difference with {what}"
    return Table("differences", title, averages, tuple(filled), bars=False)


def _against_best(row: ResultGroup, column: Column, ranked: Sequence[str], estimates: Estimates) -> Cell:
    if row.key not in ranked:
        return Cell()
    if row.key == ranked[0]:
        return Cell("best")
    return difference_cell(estimates.difference(row.key, ranked[0], column.tasks))


def standing_table(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """RobustMerge minus each other method of its block; None if no block has it beside another.

    Differences whose every interval leaves out zero are bold.
    """
    averages = list_averages(context)
    filled: list[Row] = []
    for members in list_blocks(rows).values():
        ours = [row for row in members if row.first.name == OURS]
        if len(ours) != 1:  # points of a sweep over RobustMerge itself: none of them is the one
            continue
        others = [row for row in members if row is not ours[0]]
        filled += [make_row(row, [_minus(ours[0], row, column, estimates) for column in averages]) for row in others]
    if not filled or all(cell.value is None for row in filled for cell in row.cells):
        return None
    several = any(cell.deviation is not None for row in filled for cell in row.cells)
    what = "95 % intervals over questions and over seeds" if several else "95 % interval, two-sided p"
    title = f"RobustMerge minus each other method: paired difference with {what}"
    return Table("standing", title, averages, tuple(filled), head="RobustMerge minus", bars=False)


def _minus(ours: ResultGroup, other: ResultGroup, column: Column, estimates: Estimates) -> Cell:
    if not (estimates.has(ours.key, column.tasks) and estimates.has(other.key, column.tasks)):
        return Cell()
    return difference_cell(estimates.difference(ours.key, other.key, column.tasks), embolden=True)


def pairs_table(rows: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """Every merged model minus every one above it in its block; None if no block has two that can be compared.

    Differences whose every interval leaves out zero are bold.
    """
    averages = list_averages(context)
    filled = [
        _pair(one, other, averages, estimates)
        for members in list_blocks(rows).values()
        for other, one in itertools.combinations(members, 2)
    ]
    filled = [row for row in filled if any(cell.value is not None for cell in row.cells)]
    if not filled:
        return None
    title = "Every pair of merged models" + (" of a block" if len(list_blocks(rows)) > 1 else "")
    return Table("pairs", f"{title}: paired differences", averages, tuple(filled), head="Difference", bars=False)


def _pair(one: ResultGroup, other: ResultGroup, columns: Sequence[Column], estimates: Estimates) -> Row:
    row = make_row(one, [_minus(one, other, column, estimates) for column in columns])
    return replace(row, title=f"{one.title} minus {other.title}", label=f"{one.label} minus {other.label}")


def difference_cell(found: Difference, embolden: bool = False) -> Cell:
    """A difference as a cell."""
    over = found.seeds
    return Cell(
        format_difference(found),
        found.value,
        found.low,
        found.high,
        found.p,
        deviation=over.deviation if over else None,
        seeds_low=over.low if over else None,
        seeds_high=over.high if over else None,
        bold=embolden and found.is_significant,
    )


def format_difference(found: Difference) -> str:
    """`-1.2 (-2.0 to -0.4), p = 0.004`; of several seeds both intervals. With the signs that print well."""
    questions = f"{found.low:+.1f} to {found.high:+.1f}"
    if found.seeds is None:
        text = f"{found.value:+.1f} ({questions}), p = {found.p:.3f}"
        return text.replace("-", "−").replace("p = 0.000", "p < 0.001")
    over = found.seeds
    seeds = f"{over.low:+.1f} to {over.high:+.1f}" if over.low is not None else "no interval"
    count = f"{over.n} seed" if over.n == 1 else f"{over.n} seeds"
    return f"{found.value:+.1f} (questions {questions}; {count} {seeds})".replace("-", "−")


def describe_standing(table: Table) -> list[tuple[str, str]]:
    """A sentence a block and average: what RobustMerge is clearly above, clearly below, and not told apart from."""
    told = []
    for index, column in enumerate(table.columns):
        for block in dict.fromkeys(row.block for row in table.rows):
            cells = [(row.label, row.cells[index]) for row in table.rows if row.block == block]
            known = [(label, cell) for label, cell in cells if cell.value is not None]
            sides = {
                "clearly above": [label for label, cell in known if cell.bold and cell.value > 0],
                "clearly below": [label for label, cell in known if cell.bold and cell.value < 0],
                "not told apart from": [label for label, cell in known if not cell.bold],
            }
            said = "; ".join(f"{words} {', '.join(labels)}" for words, labels in sides.items() if labels)
            place = f"{column.group}, {block[:1].lower()}{block[1:]}" if block else column.group
            if said:
                told.append((place, f"RobustMerge is {said}."))
    return told
