"""What a report is made of: the scores of every source, and how they came about."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.general.lmms_results import GeneralResult
from eval.settings import Bootstrap, Task
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError

# The order of the rows; a method that the paper does not have stands before RobustMerge, in the order given.
KINDS = ("zero_shot", "individual", "multi_task", "merged", "adapter")
PAPER_METHODS = ("task_arithmetic", "dare", "ties", "pcb")
PUBLISHED = REPOSITORY / "results" / "paper.yaml"
CHOSEN = "chosen"
VARIANTS = {"": "default strength", CHOSEN: "strength chosen on val"}  # as headings of blocks
# Settings of training whose values have a word; the rows and the figures are grouped by them.
FACETS = {"peft.shared_a_init": {"true": "shared A", "false": "independent A"}}


@dataclass(frozen=True)
class Choice:
    """What was chosen for one method.

    factor: of the update, relative to the default's; strength: the setting that gives it (in factor space the default
    times the square root of the factor). at_end: the factor is the grid's smallest or largest, so that a better one may
    lie outside. means: factor -> mean val score (0..100) over the seen tasks that have val questions.
    """

    factor: float
    strength: float
    at_end: bool
    means: Mapping[float, float]


@dataclass(frozen=True)
class SourceResult:
    """One source and its scores.

    source: zero_shot | individual | multi_task | merged/<method> | the folder of any adapter. kind: one of KINDS.
    title: as tables print it. scores, predictions: by task; predictions are the files that example answers are taken
    from. also: by task, the scores under the other protocol where there are any. address: the short address of what was
    evaluated. overrides: what differs from the method's own file and between the points of a sweep, without the seed.
    settings, paper: what the method ran with and its URL, for the legend. seed: of training; None where nothing was
    trained. variant, choice: of a strength chosen on `val`.
    """

    source: str
    kind: str
    title: str
    scores: Mapping[str, Score]
    predictions: Mapping[str, Path] = field(default_factory=dict)
    address: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    seed: int | None = None
    variant: str = ""
    choice: Choice | None = None
    also: Mapping[str, Score] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method of a merged model."""
        return self.source.partition("/")[2] or self.source

    @property
    def facet(self) -> str:
        """`shared A` and the like; "" where no such setting is swept."""
        words = [FACETS[key].get(str(self.overrides[key]).lower(), "") for key in FACETS if key in self.overrides]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class ResultGroup:
    """A row of the tables: results that differ in nothing but the seed of training.

    key: unique; title: as tables print it; label: without what the block says. block: heading of the rows that are
    compared with each other, "" where there is one block only. points: in the order of their seeds.
    """

    key: str
    title: str
    label: str
    points: tuple[SourceResult, ...]
    block: str = ""

    @property
    def first(self) -> SourceResult:
        return self.points[0]

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def tasks(self) -> frozenset[str]:
        """Those that every seed has a score for, with a value."""
        had = ({task for task, score in point.scores.items() if score.value is not None} for point in self.points)
        return frozenset.intersection(*map(frozenset, had))


@dataclass(frozen=True)
class Regime:
    """experts of rank `rank` in a base whose language model is `width` wide."""

    experts: int
    rank: int
    width: int


@dataclass(frozen=True)
class Context:
    """Everything else that a report states.

    tasks: in the order of the columns; seen ones are put first. questions: the question file of each task.
    seeds: by what they seed. command: makes this report again. published: the file of the paper's values.
    notes: more sentences for the section on how the numbers were made. base: the record of the base that was trained
    here (`probe`, `heads`, `skills`: accuracies 0..1 by name; `parameters`), None for another's.
    general: what lmms-eval estimates. protocol: of the scores.
    """

    name: str
    benchmark: str
    model: str
    profile: str
    tasks: tuple[Task, ...]
    questions: Mapping[str, Path]
    seeds: Mapping[str, int]
    command: str
    commit: str | None = None
    dirty: bool | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    published: Path = PUBLISHED
    notes: tuple[str, ...] = ()
    base: Mapping[str, Any] | None = None
    regime: Regime | None = None
    general: tuple[GeneralResult, ...] = ()
    protocol: str = "corrected"

    @property
    def seen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.seen)

    @property
    def unseen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if not task.seen)


def list_seeds(rows: Sequence[ResultGroup]) -> list[int]:
    """Every seed of training that some row has."""
    return sorted({point.seed for row in rows for point in row.points if point.seed is not None})


def group_results(results: Sequence[SourceResult]) -> list[ResultGroup]:
    """The rows of the tables in their order: seeds joined, points of a sweep labelled, keys unique.

    The order is zero-shot, individual, multi-task, then the merged models block by block (how the experts were
    trained, then default and chosen strength), in each the methods as in the paper, RobustMerge last.
    Raises UserError for an unknown kind.
    """
    for result in results:
        if result.kind not in KINDS:
            raise UserError(f"unknown kind '{result.kind}' of {result.source}; choose one of {', '.join(KINDS)}")
    groups = _join_seeds(results)
    facets = list(dict.fromkeys(result.facet for result in results))
    groups.sort(key=lambda group: _rank(group[0], facets))  # a stable sort: the points of a sweep keep their order
    return _make_blocks([_label(group, groups) for group in groups])


def _rank(point: SourceResult, facets: Sequence[str]) -> tuple[int, ...]:
    known = point.name in PAPER_METHODS
    method = PAPER_METHODS.index(point.name) if known else len(PAPER_METHODS) + point.name.startswith("robustmerge")
    return KINDS.index(point.kind), facets.index(point.facet), list(VARIANTS).index(point.variant), method


def _join_seeds(results: Sequence[SourceResult]) -> list[list[SourceResult]]:
    """Results that differ in the seed only, together; those that differ in nothing that is known stay apart."""
    groups: dict[str, list[SourceResult]] = {}
    for result in results:
        same = (result.kind, result.source, result.variant, sorted((k, _show(v)) for k, v in result.overrides.items()))
        groups.setdefault(repr(same), []).append(result)
    joined: list[list[SourceResult]] = []
    for group in groups.values():
        seeds = [result.seed for result in group]
        whole = None not in seeds and len(set(seeds)) == len(seeds)
        joined += [sorted(group, key=lambda result: result.seed or 0)] if whole else [[result] for result in group]
    return joined


def _label(group: Sequence[SourceResult], groups: Sequence[Sequence[SourceResult]]) -> ResultGroup:
    """Write what differs behind titles that several sources share, and how many seeds there are if some lack."""
    point = group[0]
    alike = [other[0] for other in groups if _is_alike(other[0], point)]
    own = _describe(point, alike)
    described = ", ".join(word for word in (point.facet, own) if word)
    title = point.title + (", strength chosen" if point.variant == CHOSEN else "")
    title += f" ({described})" if described else ""
    label = f"{point.title} ({own})" if own else point.title
    seeds = {other.seed for each in groups for other in each if other.seed is not None}
    if point.seed is not None and len(group) < len(seeds):
        lacking = f" [{len(group)} of {len(seeds)} seeds]"
        title, label = title + lacking, label + lacking
    count = Counter((_describe(o, alike), o.facet) for o in alike)[own, point.facet]
    if count > 1:  # nothing that is known tells them apart
        title, label = f"{title} [{point.address}]", f"{label} [{point.address}]"
    return ResultGroup(title, title, label, tuple(group))


def _is_alike(one: SourceResult, other: SourceResult) -> bool:
    return (one.kind, one.source, one.variant) == (other.kind, other.source, other.variant)


def _describe(result: SourceResult, alike: Sequence[SourceResult]) -> str:
    """One point: all its overrides. Several: the keys in which they differ. Those with a word are told apart."""
    keys = sorted({key for other in alike for key in other.overrides if key not in FACETS})
    if len({_show(other.overrides) for other in alike}) > 1:
        keys = [key for key in keys if len({str(other.overrides.get(key, "default")) for other in alike}) > 1]
    return ", ".join(f"{key}={_show(result.overrides.get(key, 'default'))}" for key in keys)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _make_blocks(rows: Sequence[ResultGroup]) -> list[ResultGroup]:
    """Name the blocks, where the merged models have more than one."""
    merged = [row.first for row in rows if row.kind == "merged"]
    variants, facets = ({getattr(point, key) for point in merged} for key in ("variant", "facet"))
    if len(variants) < 2 and len(facets) < 2:
        return list(rows)
    made = []
    for row in rows:
        words = [row.first.facet] if row.first.facet else []
        words += [VARIANTS[row.first.variant]] if len(variants) > 1 else []
        block = ", ".join(words) if row.kind == "merged" else ""
        made.append(dataclasses.replace(row, block=block[:1].upper() + block[1:]))
    return made
