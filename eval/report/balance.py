"""How even a merge is over the seen tasks: what each task keeps of its expert, its mean and deviation over tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from eval.report.estimates import Estimates
from eval.report.results import Context, ResultGroup
from eval.report.tables import Cell, Column, Row, Table, make_row
from eval.settings import Task

COLUMNS = (
    Column("kept_mean", "Mean"),
    Column("kept_deviation", "± over tasks"),
    Column("kept_least", "Least"),
    Column("kept_least_task", "Of", is_text=True),
)


def balance_table(groups: Sequence[ResultGroup], context: Context, estimates: Estimates) -> Table | None:
    """Scores as percentages of the experts' scores, over the seen tasks: mean, sample deviation and lowest.

    For models that answer all tasks, merged or not; None without experts of at least two tasks. Scores are means over
    seeds.
    """
    rows = [row for group in groups if (row := _make_row(group, groups, context.seen, estimates))]
    title = "What the seen tasks keep of their experts' scores, in %: mean and deviation over the tasks (figure 5c)"
    return Table("balance", title, COLUMNS, tuple(rows), bars=False) if rows else None


def _make_row(
    group: ResultGroup, groups: Sequence[ResultGroup], tasks: Sequence[Task], estimates: Estimates
) -> Row | None:
    experts = [one for one in groups if one.kind == "individual" and _belong_together(one, group)]
    if len(experts) != 1 or group.kind == "individual":
        return None
    values = [[_score(one, task, estimates) for task in tasks] for one in (group, experts[0])]
    kept = {
        task.title: 100 * value / of_expert
        for task, value, of_expert in zip(tasks, *values, strict=True)
        if value is not None and of_expert
    }
    if len(kept) < 2:
        return None
    least = min(kept, key=lambda title: kept[title])
    numbers = (statistics.fmean(kept.values()), statistics.stdev(kept.values()), kept[least])
    return make_row(group, [*(Cell(f"{x:.1f}", x) for x in numbers), Cell(least)])


def _belong_together(experts: ResultGroup, group: ResultGroup) -> bool:
    """Whether these experts belong to the points of the sweep that the other source belongs to."""
    one, other = experts.first, group.first
    return one.facet in ("", other.facet) and one.swept in ("", other.swept)


def _score(group: ResultGroup, task: Task, estimates: Estimates) -> float | None:
    has_score = estimates.has(group.title, (task.name,))
    return estimates.interval(group.title, (task.name,)).value if has_score else None
