"""Inputs of a report: the scores of every source, grouped over training seeds, and the facts of the run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.general.lmms_results import GeneralResult
from eval.settings import Bootstrap, PaperTable, Task, other_protocol
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError

REFERENCE_KINDS = ("zero_shot", "individual", "multi_task")
SOURCE_KINDS = (*REFERENCE_KINDS, "merged", "adapter")  # in the order of the rows
PAPER_METHODS = ("task_arithmetic", "dare", "ties", "pcb")
ROBUSTMERGE = "robustmerge"
PUBLISHED = REPOSITORY / "results" / "paper.yaml"
CHOSEN, SEARCHED = "chosen", "searched"
VARIANT_TITLES = {"": "default strength", CHOSEN: "strength chosen on val"}  # in the headings of blocks


@dataclass(frozen=True)
class Choice:
    """The strength that was chosen for one method.

    factor: of the update, relative to the default's; strength: the setting that gives it, as text (in factor space the
    default times the square root of the factor). at_end: the factor is the grid's smallest or largest, so that a better
    one may lie outside. means: factor -> mean val score (0..100) over the seen tasks that have val questions.
    """

    factor: float
    strength: str
    at_end: bool
    means: Mapping[float, float]


@dataclass(frozen=True)
class Search:
    """What a search for the experts' weights found, by expert; factor: of the update, relative to the default's.

    mean, start: mean val scores (0..100) of what was found and of what the search began with; tried: number of merges.
    """

    weights: Mapping[str, float]
    factor: float
    mean: float
    start: float
    tried: int


@dataclass(frozen=True)
class Training:
    """How one expert or the multi-task model was trained.

    samples: in all of its steps. left_out: rows that it was not trained on, as too long or without a readable picture.
    """

    samples: int
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    left_out: int = 0

    @property
    def first(self) -> float:
        """The mean loss of the first tenth of the steps."""
        return fmean(self.losses[: self._tenth])

    @property
    def last(self) -> float:
        """The mean loss of the last tenth of the steps."""
        return fmean(self.losses[-self._tenth :])

    @property
    def fell_by(self) -> float:
        """How much lower the last tenth is than the first, in per cent of it; not above 0 where nothing was learned."""
        return 100 * (1 - self.last / self.first) if self.first else 0.0

    @property
    def _tenth(self) -> int:
        return max(1, len(self.losses) // 10)


@dataclass(frozen=True)
class SourceResult:
    """The scores of one source, trained with one seed.

    source: zero_shot | individual | multi_task | merged/<method> | the folder of any adapter. kind: one of
    SOURCE_KINDS. title: as tables print it. method: of a merged model. scores, predictions: by task; predictions are
    the files that example answers are taken from. other_scores: by task, under the other protocol where there are any.
    address: the short address of what was evaluated. facet: the points of a sweep that it belongs to, as `shared A`;
    merged models of one facet are compared with each other, and "" belongs to all. swept: its value of the swept key,
    "" if it belongs to all values. overrides: what else but the seed the points differ in, and the method's settings,
    both as typed on the command line. settings, paper: what the method ran with and its URL, for the legend. seed: of
    training; None if nothing was trained. variant: CHOSEN for a strength chosen on `val`, else ""; choice: how it was
    chosen; search: how the weights were found, if they were searched.
    """

    source: str
    kind: str
    title: str
    scores: Mapping[str, Score]
    predictions: Mapping[str, Path] = field(default_factory=dict)
    address: str = ""
    facet: str = ""
    swept: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    seed: int | None = None
    method: str = ""
    variant: str = ""
    choice: Choice | None = None
    search: Search | None = None
    other_scores: Mapping[str, Score] = field(default_factory=dict)
    trainings: Mapping[str, Training] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultGroup:
    """Results that differ in nothing but the seed of training: a row of every table.

    title: as tables print it, unique; label: without what the block says. results: in the order of their seeds.
    block: heading of the groups that are compared with each other, "" where there is one block only.
    """

    title: str
    label: str
    results: tuple[SourceResult, ...]
    block: str = ""

    @property
    def first(self) -> SourceResult:
        return self.results[0]

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def short_title(self) -> str:
        """The title under the heading of its block."""
        return self.label if self.block else self.title

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks for which every seed has a score with a value."""
        scored = ({task for task, score in one.scores.items() if score.value is not None} for one in self.results)
        return frozenset.intersection(*map(frozenset, scored))


@dataclass(frozen=True)
class Regime:
    """How low the rank is: experts of rank `rank` in a base whose language model is `width` wide."""

    experts: int
    rank: int
    width: int


@dataclass(frozen=True)
class SweptKey:
    """The one key that a sweep runs over besides the seed. titles: of its values, in their order.

    is_facet: whether merged models are compared only with those at the same value, whose title is then their
    SourceResult.facet; not if the key is a setting of the only method.
    """

    key: str
    titles: Mapping[str, str]
    is_facet: bool = True


@dataclass(frozen=True)
class Context:
    """Everything that a report states beside the results.

    tasks: in the order of the columns; seen ones are put first. questions: the question file of each task.
    seeds: by what they seed. command: makes this report again. published: the file of the paper's values;
    paper_table: the one of its tables that is shown. notes: more sentences for the section on how the numbers were
    made. bases: name and training record of each small base (`probe`, `heads`, `skills`: accuracies 0..1 by name;
    `parameters`).
    general: what lmms-eval measured. protocol: of the scores. swept: None where the points have no order.
    pdf: whether figures are also written as PDF.
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
    paper_table: PaperTable = field(default_factory=PaperTable)
    notes: tuple[str, ...] = ()
    bases: tuple[Mapping[str, Any], ...] = ()
    regime: Regime | None = None
    general: tuple[GeneralResult, ...] = ()
    protocol: str = "corrected"
    swept: SweptKey | None = None
    pdf: bool = False

    @property
    def other_protocol(self) -> str:
        """The protocol of SourceResult.other_scores."""
        return other_protocol(self.protocol, self.tasks[0].has_classes)

    @property
    def seen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.seen)

    @property
    def unseen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if not task.seen and not task.general)

    @property
    def general_tasks(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.general)

    def question_files(self) -> list[tuple[Task, Path]]:
        """The question files that exist, with their tasks."""
        paths = [(task, Path(self.questions[task.name])) for task in self.tasks if task.name in self.questions]
        return [(task, path) for task, path in paths if path.exists()]


def list_seeds(groups: Sequence[ResultGroup]) -> list[int]:
    """Every seed of training that some result has."""
    return sorted({result.seed for group in groups for result in group.results if result.seed is not None})


def list_scores(group: ResultGroup, task: Task) -> list[Score]:
    """The scores of a task, one for every seed that has it."""
    return [result.scores[task.name] for result in group.results if task.name in result.scores]


def list_metrics(groups: Sequence[ResultGroup], task: Task) -> list[str]:
    """The names of the metrics that a task was scored with."""
    return list(dict.fromkeys(score.metric for group in groups for score in list_scores(group, task)))


def list_blocks(groups: Sequence[ResultGroup]) -> dict[str, list[ResultGroup]]:
    """The merged models that are compared with each other, by the heading of their block."""
    blocks: dict[str, list[ResultGroup]] = {}
    for group in groups:
        if group.kind == "merged":
            blocks.setdefault(group.block, []).append(group)
    return blocks


def lower_first(heading: str) -> str:
    """Lower the first letter of a block's heading, for use within a sentence."""
    return heading[:1].lower() + heading[1:]


def group_results(results: Sequence[SourceResult]) -> list[ResultGroup]:
    """Group results into the rows of the tables, in order: seeds joined, points of a sweep labelled, titles unique.

    The order is zero-shot, individual, multi-task, then the merged models block by block (by facet, then default and
    chosen strength), in each the methods as in the paper, then others, RobustMerge last.
    Raises UserError for an unknown kind.
    """
    for result in results:
        if result.kind not in SOURCE_KINDS:
            choices = ", ".join(SOURCE_KINDS)
            raise UserError(f"unknown kind '{result.kind}' of {result.source}; choose one of {choices}")
    joined = _join_seeds(results)
    facets = list(dict.fromkeys(result.facet for result in results))
    joined.sort(key=lambda seeds: _rank(seeds[0], facets))  # a stable sort: the points of a sweep keep their order
    return _name_blocks([_label(seeds, joined) for seeds in joined])


def _rank(result: SourceResult, facets: Sequence[str]) -> tuple[int, ...]:
    if result.method in PAPER_METHODS:
        place = PAPER_METHODS.index(result.method)
    else:  # robustmerge_eq5 is a RobustMerge, too
        place = len(PAPER_METHODS) + result.method.startswith(ROBUSTMERGE)
    variant = list(VARIANT_TITLES).index(result.variant)
    return SOURCE_KINDS.index(result.kind), facets.index(result.facet), variant, place


def _join_seeds(results: Sequence[SourceResult]) -> list[list[SourceResult]]:
    """Join results that differ only in the seed; results of the same seed stay apart."""
    alike: dict[str, list[SourceResult]] = {}
    for one in results:
        overrides = sorted((key, _format_value(value)) for key, value in one.overrides.items())
        alike.setdefault(repr((one.kind, one.source, one.facet, one.variant, overrides)), []).append(one)
    joined: list[list[SourceResult]] = []
    for members in alike.values():
        seeds = [one.seed for one in members]
        are_distinct = None not in seeds and len(set(seeds)) == len(seeds)
        joined += [sorted(members, key=lambda one: one.seed or 0)] if are_distinct else [[one] for one in members]
    return joined


def _label(results: Sequence[SourceResult], joined: Sequence[Sequence[SourceResult]]) -> ResultGroup:
    """Label a group with what tells it from others of its title, and with its number of seeds if some are missing."""
    first = results[0]
    alike = [seeds[0] for seeds in joined if _is_alike(seeds[0], first)]
    overrides = _describe_overrides(first, alike)
    details = ", ".join(words for words in (first.facet, overrides) if words)
    title = first.title + (", strength chosen" if first.variant == CHOSEN else "")
    title += f" ({details})" if details else ""
    label = f"{first.title} ({overrides})" if overrides else first.title
    every_seed = {one.seed for seeds in joined for one in seeds if one.seed is not None}
    if first.seed is not None and len(results) < len(every_seed):
        lacking = f" [{len(results)} of {len(every_seed)} seeds]"
        title, label = title + lacking, label + lacking
    count = Counter((_describe_overrides(one, alike), one.facet) for one in alike)[overrides, first.facet]
    if count > 1:  # only the address distinguishes them
        title, label = f"{title} [{first.address}]", f"{label} [{first.address}]"
    return ResultGroup(title, label, tuple(results))


def _is_alike(one: SourceResult, other: SourceResult) -> bool:
    return (one.kind, one.source, one.variant) == (other.kind, other.source, other.variant)


def _describe_overrides(result: SourceResult, alike: Sequence[SourceResult]) -> str:
    """Describe the overrides of results: all of a single result, of several those that differ."""
    keys = sorted({key for other in alike for key in other.overrides})
    if len({_format_value(other.overrides) for other in alike}) > 1:
        keys = [key for key in keys if len({str(other.overrides.get(key, "default")) for other in alike}) > 1]
    return ", ".join(f"{key}={_format_value(result.overrides.get(key, 'default'))}" for key in keys)


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name_blocks(groups: Sequence[ResultGroup]) -> list[ResultGroup]:
    """Give the merged models the heading of their block, where there is more than one block."""
    merged = [group.first for group in groups if group.kind == "merged"]
    variants, facets = {result.variant for result in merged}, {result.facet for result in merged}
    if len(variants) < 2 and len(facets) < 2:
        return list(groups)
    named = []
    for group in groups:
        words = [group.first.facet] if group.first.facet else []
        words += [VARIANT_TITLES[group.first.variant]] if len(variants) > 1 else []
        block = ", ".join(words) if group.kind == "merged" else ""
        named.append(dataclasses.replace(group, block=block[:1].upper() + block[1:]))
    return named
