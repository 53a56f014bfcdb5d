"""Any sources against each other, pair by pair, from the scores that exist; at most a named CSV file is written."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.report.estimates import Estimates
from eval.report.formats import format_csv, format_text
from eval.report.results import Context, ResultGroup, SourceResult
from eval.report.standing import difference_cell
from eval.report.tables import Cell, Column, Row, Table, format_interval, list_columns
from eval.statistics import FEWEST_SEEDS, Difference
from pipeline.plan import Plan
from pipeline.program import command
from pipeline.stages.report_context import make_context
from pipeline.sweep import describe_point, find_swept_keys, make_plans
from robustmerge.stage.files import write_atomically
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import ConfigError, Problem, UserError, build

WIDTH = 130  # characters of a line in the terminal
LONGEST_NAME = 32


@dataclass(frozen=True)
class Request:
    """sources: what is compared, as `source=` takes it. out: a CSV file."""

    sources: tuple[str, ...]
    out: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.sources)) < max(2, len(self.sources)):
            raise ConfigError(
                Problem(f"name at least two different sources, as 'sources=[a,b]', got {list(self.sources)}")
            )
        if self.out is not None and Path(self.out).suffix != ".csv":
            raise ConfigError(Problem(f"out must be a CSV file, got {self.out}", "out"))


@dataclass(frozen=True)
class Compared:
    """Two rows at one point of a sweep over more than the seed. at: that point, "" where there is one."""

    at: str
    one: ResultGroup
    other: ResultGroup
    measured: Estimates


def compare(points: Sequence[Mapping[str, Any]]) -> None:
    """Print every pair. Raises UserError if two sources have no score on a common task."""
    plans, request = read_request(points)
    context = make_context("compare", plans)
    pairs = list(list_pairs(plans, request.sources, context))
    under = f"{context.benchmark} on {context.model}, {context.protocol} protocol"
    print(f"{under}: scores and paired differences in %, with 95 % intervals over questions\n")
    for pair in pairs:
        print(show(pair, context))
    print("\n".join(tell_noise(pairs, context)))
    if request.out is not None:
        path = Path(request.out).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, format_csv(list_all(pairs, context)))
        print(f"written: {path}")


def read_request(points: Sequence[Mapping[str, Any]]) -> tuple[list[Plan], Request]:
    """The lines and what is compared. Raises ConfigError for what is wrong, UserError for a sweep over sources."""
    keys = ("sources", "out")
    wanted = [{key: point[key] for key in keys} for point in points]
    if any(one != wanted[0] for one in wanted):
        raise UserError("a sweep cannot run over sources or out; name all sources in one list, 'sources=[a,b,c]'")
    request = build(Request, wanted[0], "")
    return make_plans([{key: value for key, value in point.items() if key not in keys} for point in points]), request


def list_pairs(plans: Sequence[Plan], names: Sequence[str], context: Context) -> Iterator[Compared]:
    """Every pair of sources at every point, the seeds of a point joined."""
    tasks = [task.name for task in context.tasks]
    for at, alike in _by_point(plans).items():
        rows = [_row(name, alike) for name in names]
        measured = Estimates(rows, tasks, context.bootstrap)
        for one, other in itertools.combinations(rows, 2):
            if not one.tasks & other.tasks:
                raise UserError(_nothing_in_common(one, other))
            yield Compared(at, one, other, measured)


def _by_point(plans: Sequence[Plan]) -> dict[str, list[Plan]]:
    """The plans by what differs between them beside the seed."""
    keys = find_swept_keys(plans, ignored=("seed",))
    points: dict[str, list[Plan]] = {}
    for plan in plans:
        points.setdefault(describe_point(plan, keys), []).append(plan)
    return points


def _row(name: str, plans: Sequence[Plan]) -> ResultGroup:
    """A source with its scores of every seed; one that is the same in all of them has no seed."""
    found = {plan.config.seed: (plan, plan.find_source(name)) for plan in plans}
    untrained = len(found) > 1 and len({source.address.path for _, source in found.values()}) == 1
    results = []
    for seed, (plan, source) in found.items():
        complete = [one for one in plan.list_evaluations(source) if one.score.is_complete()]
        scores = {one.task.name: read_score(one.score.path) for one in complete}
        results.append(SourceResult(name, "adapter", name, scores, seed=None if untrained else seed))
    return ResultGroup(name, name, tuple(results[:1] if untrained else results))


def _nothing_in_common(one: ResultGroup, other: ResultGroup) -> str:
    lacking = [row.title for row in (one, other) if not row.tasks] or [one.title, other.title]
    made = [f"  {_typed(program, name)}" for name in lacking for program in ("predict", "score")]
    return "\n".join([f"{one.title} and {other.title} have no score on a common task. Make them with:", *made])


def _typed(program: str, name: str) -> str:
    words = command(program, lambda word: not word.startswith(("sources=", "out=")))
    return f"{words} {shlex.quote(f'source={name}')}"


def show(pair: Compared, context: Context) -> str:
    """One pair as text; `*` marks differences outside the noise."""
    one, other = (_shorten(row.title) for row in (pair.one, pair.other))
    keys = {"one": one, "other": other, "difference": "Difference", "interval": "95 % interval", "p": "p"}
    several = pair.measured.has_several_seeds
    keys |= {"seeds": "Over seeds: ±, interval"} if several else {}
    columns = tuple(Column(key, title) for key, title in keys.items())
    rows = tuple(
        Row(column.title, "adapter", tuple(_cells(pair, column))[: len(columns)]) for column in list_columns(context)
    )
    place = f" ({pair.at})" if pair.at else ""
    lacking = [
        f"no score of {row.title}: {', '.join(t.title for t in context.tasks if t.name not in row.tasks)}\n"
        for row in (pair.one, pair.other)
        if any(task.name not in row.tasks for task in context.tasks)
    ]
    text = format_text(Table("pair", "", columns, rows, head="Task"), WIDTH)
    return f"{one} minus {other}{place}\n\n{text}{''.join(lacking)}"


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _cells(pair: Compared, column: Column) -> Iterator[Cell]:
    measured, keys = pair.measured, (pair.one.title, pair.other.title)
    able = [measured.has(key, column.tasks) for key in keys]
    for key, has in zip(keys, able, strict=True):
        yield Cell(format_interval(measured.interval(key, column.tasks))) if has else Cell()
    if not all(able):
        yield from [Cell()] * 4
        return
    found = measured.difference(*keys, column.tasks)
    cell = difference_cell(found, embolden=True)
    yield replace(cell, text=_signed(f"{found.value:+.1f}"))
    yield Cell(_signed(f"{found.low:+.1f} to {found.high:+.1f}"))
    yield Cell(f"{found.p:.3f}".replace("0.000", "< 0.001"))
    yield Cell(_show_seeds(found))


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _show_seeds(found: Difference) -> str:
    """`1.4, +0.3 to +5.2 (5)`: deviation, interval and number of seeds that both have."""
    over = found.seeds
    if over is None or over.n < 2:
        return "none shared" if over is None or not over.n else "1 shared"
    interval = f"{over.low:+.1f} to {over.high:+.1f}" if over.low is not None else "no interval"
    return _signed(f"{over.deviation:.1f}, {interval} ({over.n})")


def tell_noise(pairs: Sequence[Compared], context: Context) -> list[str]:
    """What the marks and intervals mean."""
    told = [
        "* outside the noise: every 95 % interval leaves out zero; nothing is corrected for the number of pairs.",
        f"p: two-sided, from {context.bootstrap.draws} draws, so never below {2 / (context.bootstrap.draws + 1):.2g}.",
    ]
    if any(pair.measured.has_several_seeds for pair in pairs):
        told.append(
            f"Over seeds: deviation of the paired differences, their 95 % t interval (from {FEWEST_SEEDS} on), "
            "how many; p is that of the questions."
        )
    asked = [
        score
        for pair in pairs
        for row in (pair.one, pair.other)
        for result in row.results
        for score in result.scores.values()
    ]
    if any(score.n_asked for score in asked):
        told.append("Only some questions were asked: a partial evaluation, not a result.")
    reasons = {score.reason for score in asked if score.value is None and score.reason}
    return [*told, *(f"Missing: {reason}." for reason in sorted(reasons))]


def list_all(pairs: Sequence[Compared], context: Context) -> Table:
    """All pairs as one table, a line a task or average."""
    words = [Column(key, key, is_text=True) for key in ("source", "minus", "at")]
    numbers = [Column(key, key) for key in ("source_score", "minus_score", "difference")]
    rows = []
    for pair in pairs:
        for column in list_columns(context):
            named = [Cell(word) for word in (pair.one.title, pair.other.title, pair.at)]
            rows.append(Row(column.key, "adapter", (*named, *_numbers(pair, column))))
    return Table("compare", "Paired differences", (*words, *numbers), tuple(rows), head="task")


def _numbers(pair: Compared, column: Column) -> Iterator[Cell]:
    measured, keys = pair.measured, (pair.one.title, pair.other.title)
    able = [measured.has(key, column.tasks) for key in keys]
    for key, has in zip(keys, able, strict=True):
        found = measured.interval(key, column.tasks) if has else None
        deviation = found.seeds.deviation if found and found.seeds else None
        yield Cell("", found.value, found.low, found.high, deviation=deviation) if found else Cell()
    yield difference_cell(measured.difference(*keys, column.tasks)) if all(able) else Cell()
