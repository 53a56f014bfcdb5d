"""The ranking of many merged models: by their averages, with the range of each rank, and what a merge costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.report.estimates import Estimates
from eval.report.results import Context, ResultGroup, list_blocks
from eval.report.tables import Cell, Column, Row, Table, format_interval, list_averages, make_row, rank_merged
from eval.statistics import Interval
from robustmerge.stage.address import REPOSITORY

MANY = 8  # merged models of a block, from which on they are ranked
COSTS = REPOSITORY / "results" / "bench_merge" / "table.json"
COST = Column("cpu", "CPU s", heading="Eight experts at 7B")


def ranking_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """The merged models of each block with MANY, best first by the first average, with their ranks and costs.

    The cost of a method is of its own file, as measured in `results/bench_merge`; one that is changed has none.
    None if no block has as many.
    """
    averages, costs = list_averages(context), read_costs()
    rows = [
        row
        for members in list_blocks(groups).values()
        if averages and len(ranked := rank_merged(members, averages[0], estimates)) >= MANY
        for row in _rank_rows(ranked, averages, estimates, costs)
    ]
    if not rows:
        return None
    columns = []
    for column in averages:
        heading = f"{column.average_over.capitalize()} tasks"
        columns += [
            replace(column, title="Average", heading=heading),
            Column(f"rank_{column.key}", "Rank", (), heading),
        ]
    columns += [COST] if any(row.cells[-1].value is not None for row in rows) else []
    rows = [replace(row, cells=row.cells[: len(columns)]) for row in rows]
    return Table("ranking", f"Merged models by their {averages[0].average_over} average", tuple(columns), tuple(rows))


def _rank_rows(
    ranked: Sequence[ResultGroup], averages: Sequence[Column], estimates: Estimates, costs: dict[str, float]
) -> list[Row]:
    cells: list[list[Cell]] = [[] for _ in ranked]
    for column in averages:
        for row, group, rank in zip(cells, ranked, list_ranks(ranked, column, estimates), strict=True):
            row += [score_cell(group, column, estimates), rank]
    return [
        make_row(group, [*row, _cost_cell(None if group.first.overrides else costs.get(group.first.method))])
        for group, row in zip(ranked, cells, strict=True)
    ]


def list_ranks(groups: Iterable[ResultGroup | None], average: Column, estimates: Estimates) -> list[Cell]:
    """The rank of each merged model among them, as `2 (1–3)`; a missing cell for the others and for None."""
    groups = list(groups)
    titles = [
        group.title
        for group in groups
        if group is not None and group.kind == "merged" and estimates.has(group.title, average.tasks)
    ]
    ranks = dict(zip(titles, estimates.ranks(titles, average.tasks), strict=True)) if titles else {}
    return [_rank_cell(ranks[group.title]) if group and group.title in ranks else Cell() for group in groups]


def _rank_cell(rank: Interval) -> Cell:
    return Cell(f"{rank.value:g} ({rank.low:g}–{rank.high:g})", rank.value, rank.low, rank.high)


def score_cell(group: ResultGroup, column: Column, estimates: Estimates) -> Cell:
    """A mean with its intervals over questions and over seeds; a missing cell without scores."""
    if not estimates.has(group.title, column.tasks):
        return Cell()
    mean = estimates.interval(group.title, column.tasks)
    cell = Cell(format_interval(mean), mean.value, mean.low, mean.high)
    spread = mean.seeds
    return replace(cell, deviation=spread.deviation, seeds_low=spread.low, seeds_high=spread.high) if spread else cell


def _cost_cell(seconds: float | None) -> Cell:
    return Cell() if seconds is None else Cell(f"{seconds:.1f}", seconds)


def read_costs() -> dict[str, float]:
    """CPU seconds of a merge by each method as in its file, with one worker; see docs/costs.md."""
    rows = json.loads(COSTS.read_text())["rows"] if COSTS.exists() else []
    return {row["name"]: row["cpu"] for row in rows if "cpu" in row and not row["changes"] and row["workers"] == 1}
