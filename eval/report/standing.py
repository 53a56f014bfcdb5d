"""Comparison of merged models: paired differences within a block, whose rows differ only in the method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from eval.report.estimates import Estimates
from eval.report.results import ROBUSTMERGE, Context, ResultGroup, list_blocks, lower_first
from eval.report.tables import Cell, Column, Row, Table, list_averages, make_row, rank_merged
from eval.statistics import Difference


def difference_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """The best merged model of each average against every other one of its block; None if no block has two."""
    blocks = list_blocks(groups)
    ranked = {
        (block, column.key): [group.title for group in rank_merged(members, column, estimates)]
        for block, members in blocks.items()
        for column in list_averages(context)
    }
    averages = tuple(
        column for column in list_averages(context) if any(len(ranked[block, column.key]) > 1 for block in blocks)
    )
    if not averages:
        return None
    rows = [
        make_row(group, [_against_best(group, column, ranked[block, column.key], estimates) for column in averages])
        for block, members in blocks.items()
        for group in members
    ]
    among = " of each average" + (" in its block" if len(blocks) > 1 else "")
    title = f"Merged models against the best one{among}: paired difference with {_name_intervals(rows)}"
    return Table("differences", title, averages, tuple(rows), bars=False)


def _against_best(group: ResultGroup, column: Column, ranked: Sequence[str], estimates: Estimates) -> Cell:
    if group.title not in ranked:
        return Cell()
    if group.title == ranked[0]:
        return Cell("best")
    return difference_cell(estimates.difference(group.title, ranked[0], column.tasks))


def _name_intervals(rows: Sequence[Row]) -> str:
    has_seeds = any(cell.deviation is not None for row in rows for cell in row.cells)
    return "95 % intervals over questions and over seeds" if has_seeds else "95 % interval, two-sided p"


def standing_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """RobustMerge minus each other method of its block; None if no block has it beside another.

    Differences whose every interval leaves out zero are bold.
    """
    averages = list_averages(context)
    rows: list[Row] = []
    for members in list_blocks(groups).values():
        ours = [group for group in members if group.first.method == ROBUSTMERGE and not group.first.search]
        if len(ours) == 1:  # several are points of a sweep over RobustMerge itself: none of them is the one
            others = [group for group in members if group is not ours[0]]
            rows += [make_row(group, _list_differences(ours[0], group, averages, estimates)) for group in others]
    if all(cell.value is None for row in rows for cell in row.cells):
        return None
    title = f"RobustMerge minus each other method: paired difference with {_name_intervals(rows)}"
    return Table("standing", title, averages, tuple(rows), head="RobustMerge minus", bars=False)


def pairs_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """Every merged model minus every one above it in its block; None if no block has two that can be compared.

    Differences whose every interval leaves out zero are bold.
    """
    averages, blocks = list_averages(context), list_blocks(groups)
    rows = [
        _pair_row(one, other, averages, estimates)
        for members in blocks.values()
        for other, one in itertools.combinations(members, 2)
    ]
    rows = [row for row in rows if any(cell.value is not None for cell in row.cells)]
    if not rows:
        return None
    title = "Every pair of merged models" + (" of a block" if len(blocks) > 1 else "")
    return Table("pairs", f"{title}: paired differences", averages, tuple(rows), head="Difference", bars=False)


def _pair_row(one: ResultGroup, other: ResultGroup, columns: Sequence[Column], estimates: Estimates) -> Row:
    row = make_row(one, _list_differences(one, other, columns, estimates))
    return replace(row, title=f"{one.title} minus {other.title}", label=f"{one.label} minus {other.label}")


def _list_differences(
    one: ResultGroup, other: ResultGroup, columns: Sequence[Column], estimates: Estimates
) -> list[Cell]:
    """`one` minus `other` in every column, bold where it is significant."""
    return [
        difference_cell(estimates.difference(one.title, other.title, column.tasks), embolden=True)
        if estimates.has(one.title, column.tasks) and estimates.has(other.title, column.tasks)
        else Cell()
        for column in columns
    ]


def difference_cell(difference: Difference, embolden: bool = False) -> Cell:
    """A difference as a cell; embolden: bold if every interval leaves out zero."""
    spread = difference.seeds
    return Cell(
        format_difference(difference),
        difference.value,
        difference.low,
        difference.high,
        difference.p,
        deviation=spread.deviation if spread else None,
        seeds_low=spread.low if spread else None,
        seeds_high=spread.high if spread else None,
        bold=embolden and difference.is_significant,
    )


def format_difference(difference: Difference) -> str:
    """A difference as `−1.2 (−2.0 to −0.4), p = 0.004`; of several seeds both intervals."""
    questions = f"{difference.low:+.1f} to {difference.high:+.1f}"
    if difference.seeds is None:
        text = f"{difference.value:+.1f} ({questions}), {_format_p(difference)}"
        return text.replace("-", "−")
    spread = difference.seeds
    seeds = f"{spread.low:+.1f} to {spread.high:+.1f}" if spread.low is not None else "no interval"
    count = f"{spread.n} seed" if spread.n == 1 else f"{spread.n} seeds"
    return f"{difference.value:+.1f} (questions {questions}; {count} {seeds})".replace("-", "−")


def _format_p(difference: Difference) -> str:
    """`p = 0.004`, or at the smallest p that the resamples can tell `p < 0.001`."""
    return f"p < {math.ceil(1000 * difference.p) / 1000:.3f}" if difference.is_floor else f"p = {difference.p:.3f}"


def describe_standing(table: Table) -> list[tuple[str, str]]:
    """State for each average and block which methods RobustMerge is significantly above, below, or neither.

    Each is a pair of the place (average and block) and the sentence.
    """
    sentences = []
    for index, column in enumerate(table.columns):
        for block in dict.fromkeys(row.block for row in table.rows):
            sides: dict[str, list[str]] = {"clearly above": [], "clearly below": [], "not told apart from": []}
            for row in table.rows:
                cell = row.cells[index]
                if row.block == block and cell.value is not None:
                    side = "clearly above" if cell.value > 0 else "clearly below"
                    sides[side if cell.bold else "not told apart from"].append(row.label)
            verdicts = "; ".join(f"{side} {', '.join(labels)}" for side, labels in sides.items() if labels)
            place = f"{column.heading}, {lower_first(block)}" if block else column.heading
            if verdicts:
                sentences.append((place, f"RobustMerge is {verdicts}."))
    return sentences
