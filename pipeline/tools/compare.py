"""Compare any sources pair by pair, from existing scores; only the CSV file `out`, if given, is written."""

from __future__ import annotations

import itertools
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
from pipeline.words import format_command
from robustmerge.stage.files import expand, write_atomically
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import ConfigError, Problem, UserError, build

WIDTH = 130  # characters of a line in the terminal
LONGEST_NAME = 32


@dataclass(frozen=True)
class CompareRequest:
    """The keys of compare.py. sources: what is compared, as `source=` takes it. out: a CSV file."""

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
class Pair:
    """Two sources to compare at one point of a sweep. point: in words, "" if there is only one."""

    point: str
    one: ResultGroup
    other: ResultGroup
    estimates: Estimates


def compare(points: Sequence[Mapping[str, Any]]) -> None:
    """Print every pair. Raises UserError if two sources have no score on a common task."""
    plans, request = read_request(points)
    context = make_context("compare", plans)
    pairs = list(list_pairs(plans, request.sources, context))
    under = f"{context.benchmark} on {context.model}, {context.protocol} protocol"
    print(f"{under}: scores and paired differences in %, with 95 % intervals over questions\n")
    for pair in pairs:
        print(format_pair(pair, context))
    print("\n".join(explain_noise(pairs, context)))
    if request.out is not None:
        path = expand(request.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, format_csv(tabulate(pairs, context)))
        print(f"written: {path}")


def read_request(points: Sequence[Mapping[str, Any]]) -> tuple[list[Plan], CompareRequest]:
    """The plans and what is compared. Raises ConfigError for what is wrong, UserError for a sweep over sources."""
    keys = ("sources", "out")
    values = [{key: point[key] for key in keys} for point in points]
    if any(one != values[0] for one in values):
        raise UserError("a sweep cannot run over sources or out; name all sources in one list, 'sources=[a,b,c]'")
    request = build(CompareRequest, values[0], "")
    return make_plans([{key: value for key, value in point.items() if key not in keys} for point in points]), request


def list_pairs(plans: Sequence[Plan], names: Sequence[str], context: Context) -> Iterator[Pair]:
    """Every pair of sources at every point, the seeds of a point joined."""
    tasks = [task.name for task in context.tasks]
    for point, of_point in _by_point(plans).items():
        rows = [_read_source(name, of_point) for name in names]
        estimates = Estimates(rows, tasks, context.bootstrap)
        for one, other in itertools.combinations(rows, 2):
            if not one.tasks & other.tasks:
                raise UserError(_explain_no_common_task(one, other))
            yield Pair(point, one, other, estimates)


def _by_point(plans: Sequence[Plan]) -> dict[str, list[Plan]]:
    """Group the plans by what differs between them apart from the seed."""
    keys = find_swept_keys(plans, ignored=("seed",))
    points: dict[str, list[Plan]] = {}
    for plan in plans:
        points.setdefault(describe_point(plan, keys), []).append(plan)
    return points


def _read_source(name: str, plans: Sequence[Plan]) -> ResultGroup:
    """A source with its scores of every seed; one that is the same in all of them has no seed."""
    sources = {plan.config.seed: (plan, plan.find_source(name)) for plan in plans}
    untrained = len(sources) > 1 and len({source.address.path for _, source in sources.values()}) == 1
    results = []
    for seed, (plan, source) in sources.items():
        complete = [one for one in plan.list_evaluations(source) if one.score.is_complete()]
        scores = {one.task.name: read_score(one.score.path) for one in complete}
        results.append(SourceResult(name, "adapter", name, scores, seed=None if untrained else seed))
    return ResultGroup(name, name, tuple(results[:1] if untrained else results))


def _explain_no_common_task(one: ResultGroup, other: ResultGroup) -> str:
    lacking = [row.title for row in (one, other) if not row.tasks] or [one.title, other.title]
    commands = [f"  {_command(program, name)}" for name in lacking for program in ("predict", "score")]
    return "\n".join([f"{one.title} and {other.title} have no score on a common task. Make them with:", *commands])


def _command(program: str, name: str) -> str:
    words = command(program, lambda word: not word.startswith(("sources=", "out=")))
    return f"{words} {format_command([f'source={name}'])}"


def format_pair(pair: Pair, context: Context) -> str:
    """One pair as text; `*` marks differences outside the noise."""
    one, other = (_shorten(row.title) for row in (pair.one, pair.other))
    keys = {"one": one, "other": other, "difference": "Difference", "interval": "95 % interval", "p": "p"}
    several = pair.estimates.has_several_seeds
    keys |= {"seeds": "Over seeds: ±, interval"} if several else {}
    columns = tuple(Column(key, title) for key, title in keys.items())
    rows = tuple(
        Row(column.title, "adapter", tuple(_cells(pair, column))[: len(columns)]) for column in list_columns(context)
    )
    point = f" ({pair.point})" if pair.point else ""
    lacking = [
        f"no score of {row.title}: {', '.join(t.title for t in context.tasks if t.name not in row.tasks)}\n"
        for row in (pair.one, pair.other)
        if any(task.name not in row.tasks for task in context.tasks)
    ]
    text = format_text(Table("pair", "", columns, rows, head="Task"), WIDTH)
    return f"{one} minus {other}{point}\n\n{text}{''.join(lacking)}"


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _cells(pair: Pair, column: Column) -> Iterator[Cell]:
    estimates, keys = pair.estimates, (pair.one.title, pair.other.title)
    scored = [estimates.has(key, column.tasks) for key in keys]
    for key, has in zip(keys, scored, strict=True):
        yield Cell(format_interval(estimates.interval(key, column.tasks))) if has else Cell()
    if not all(scored):
        yield from [Cell()] * 4
        return
    difference = estimates.difference(*keys, column.tasks)
    cell = difference_cell(difference, embolden=True)
    yield replace(cell, text=_signed(f"{difference.value:+.1f}"))
    yield Cell(_signed(f"{difference.low:+.1f} to {difference.high:+.1f}"))
    yield Cell(f"{difference.p:.3f}".replace("0.000", "< 0.001"))
    yield Cell(_format_seeds(difference))


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _format_seeds(difference: Difference) -> str:
    """`1.4, +0.3 to +5.2 (5)`: deviation, interval and number of seeds that both have."""
    over = difference.seeds
    if over is None or over.n < 2:
        return "none shared" if over is None or not over.n else "1 shared"
    interval = f"{over.low:+.1f} to {over.high:+.1f}" if over.low is not None else "no interval"
    return _signed(f"{over.deviation:.1f}, {interval} ({over.n})")


def explain_noise(pairs: Sequence[Pair], context: Context) -> list[str]:
    """Explain the marks and intervals."""
    notes = [
        "* outside the noise: every 95 % interval leaves out zero; nothing is corrected for the number of pairs.",
        f"p: two-sided, from {context.bootstrap.draws} draws, so never below {2 / (context.bootstrap.draws + 1):.2g}.",
    ]
    if any(pair.estimates.has_several_seeds for pair in pairs):
        notes.append(
            f"Over seeds: deviation of the paired differences, their 95 % t interval (from {FEWEST_SEEDS} on), "
            "how many; p is that of the questions."
        )
    scores = [
        score
        for pair in pairs
        for row in (pair.one, pair.other)
        for result in row.results
        for score in result.scores.values()
    ]
    if any(score.n_asked for score in scores):
        notes.append("Only some questions were asked: a partial evaluation, not a result.")
    reasons = {score.reason for score in scores if score.value is None and score.reason}
    return [*notes, *(f"Missing: {reason}." for reason in sorted(reasons))]


def tabulate(pairs: Sequence[Pair], context: Context) -> Table:
    """All pairs as one table, a line a task or average."""
    words = [Column(key, key, is_text=True) for key in ("source", "minus", "at")]
    numbers = [Column(key, key) for key in ("source_score", "minus_score", "difference")]
    rows = []
    for pair in pairs:
        for column in list_columns(context):
            names = [Cell(word) for word in (pair.one.title, pair.other.title, pair.point)]
            rows.append(Row(column.key, "adapter", (*names, *_numbers(pair, column))))
    return Table("compare", "Paired differences", (*words, *numbers), tuple(rows), head="task")


def _numbers(pair: Pair, column: Column) -> Iterator[Cell]:
    estimates, keys = pair.estimates, (pair.one.title, pair.other.title)
    scored = [estimates.has(key, column.tasks) for key in keys]
    for key, has in zip(keys, scored, strict=True):
        score = estimates.interval(key, column.tasks) if has else None
        deviation = score.seeds.deviation if score and score.seeds else None
        yield Cell("", score.value, score.low, score.high, deviation=deviation) if score else Cell()
    yield difference_cell(estimates.difference(*keys, column.tasks)) if all(scored) else Cell()
