"""What a report is made of: the scores of every source, and how they came about."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.settings import Bootstrap, Task
from robustmerge.records import Score
from robustmerge.settings import UserError

# The order of the rows; a method that the paper does not have stands before RobustMerge, in the order given.
KINDS = ("zero_shot", "expert", "individual", "multi_task", "merged", "adapter")
PAPER_METHODS = ("task_arithmetic", "dare", "ties", "pcb")
PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "paper.yaml"


@dataclass(frozen=True)
class SourceResult:
    """One source and its scores.

    source: zero_shot | expert/<task> | multi_task | merged/<method> | the folder of any adapter. kind: zero_shot |
    expert | multi_task | merged | adapter. title: as tables print it. scores, predictions: by task; predictions
    are the files that example answers are taken from. address: the short address of what was evaluated.
    overrides: what differs from the method's own file, so that the points of a sweep can be told apart.
    settings, paper: what the method ran with and its URL, for the legend. key: of the row, set by `arrange_rows`.
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
    key: str = ""

    @property
    def name(self) -> str:
        """The task of an expert, the method of a merged model."""
        return self.source.partition("/")[2] or self.source


@dataclass(frozen=True)
class Context:
    """Everything else that a report states.

    tasks: in the order of the columns; seen ones are put first. questions: the question file of each task.
    seeds: by what they seed. command: makes this report again. published: the file of the paper's values.
    notes: more sentences for the section on how the numbers were made.
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

    @property
    def seen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.seen)

    @property
    def unseen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if not task.seen)


def arrange_rows(results: Sequence[SourceResult]) -> list[SourceResult]:
    """The rows of the tables in their order: experts joined into one, points of a sweep labelled, keys unique.

    The order is zero-shot, individual, multi-task, then the methods as in the paper, RobustMerge last.
    Raises UserError for an unknown kind or an expert without a score for its own task.
    """
    for result in results:
        if result.kind not in KINDS:
            raise UserError(f"unknown kind '{result.kind}' of {result.source}; choose one of {', '.join(KINDS)}")
    experts = [result for result in results if result.kind == "expert"]
    others = [result for result in results if result.kind != "expert"]
    rows = [*([_join_experts(experts)] if experts else []), *_label(others)]
    return sorted(rows, key=_rank)  # a stable sort: the points of a sweep keep their order


def _rank(row: SourceResult) -> tuple[int, int]:
    if row.name in PAPER_METHODS:
        return KINDS.index(row.kind), PAPER_METHODS.index(row.name)
    return KINDS.index(row.kind), len(PAPER_METHODS) + row.name.startswith("robustmerge")


def _join_experts(experts: Sequence[SourceResult]) -> SourceResult:
    """One row: each expert on its own task."""
    for expert in experts:
        if expert.name not in expert.scores:
            raise UserError(f"{expert.source} has no score for its own task {expert.name}")
    doubled = [name for name, count in Counter(expert.name for expert in experts).items() if count > 1]
    if doubled:
        raise UserError(f"more than one expert for {', '.join(doubled)}; a report takes one a task")
    return SourceResult(
        source="individual",
        key="individual",
        kind="individual",
        title="Individual",
        scores={expert.name: expert.scores[expert.name] for expert in experts},
        predictions={e.name: e.predictions[e.name] for e in experts if e.name in e.predictions},
        address=", ".join(expert.address for expert in experts if expert.address),
        settings=experts[0].settings,
    )


def _label(results: Sequence[SourceResult]) -> list[SourceResult]:
    """Write what differs behind titles that several sources share, and make the keys unique."""
    labelled = []
    for result in results:
        alike = [other for other in results if (other.kind, other.source) == (result.kind, result.source)]
        label = _describe(result, alike)
        title = f"{result.title} ({label})" if label else result.title
        labelled.append(dataclasses.replace(result, title=title, key=title))
    doubled = {key for key, count in Counter(row.key for row in labelled).items() if count > 1}
    return [_add_address(row) if row.key in doubled else row for row in labelled]


def _describe(result: SourceResult, alike: Sequence[SourceResult]) -> str:
    """One point: all its overrides. Several: the keys in which they differ."""
    keys = sorted({key for other in alike for key in other.overrides})
    if len(alike) > 1:
        keys = [key for key in keys if len({str(other.overrides.get(key, "default")) for other in alike}) > 1]
    return ", ".join(f"{key}={_show(result.overrides.get(key, 'default'))}" for key in keys)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _add_address(row: SourceResult) -> SourceResult:
    title = f"{row.title} [{row.address}]"
    return dataclasses.replace(row, title=title, key=title)
