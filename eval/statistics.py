"""Confidence intervals (95 %): over questions by the bootstrap, over training seeds by Student's t.

Tasks are fixed; questions are resampled with replacement within their task, those that share a picture together.
The sufficient statistics of the task's score (of a mean: the values) are summed over the resampled questions, and
eval.metrics.aggregates recomputes the score from the sums. The resamples of a task depend on the seed, the task's name
and its number of clusters only, so all sources see the same ones: differences are paired, and adding a source changes
no other's interval. These intervals say how far a result depends on the questions drawn; how far it depends on the
training seed is what `spread_over_seeds` says.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.aggregates import AGGREGATES
from eval.settings import Bootstrap
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError

LEVEL = 95.0
FEWEST_SEEDS = 3  # for an interval
# Quantiles 0.975 of Student's t for 2, 3, ... 30 degrees of freedom.
T_QUANTILES = (
    4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
ROUNDING = 1e-9  # of scores in 0..1
CHUNK = 2_000_000  # questions drawn at once: bounds the memory to some 50 MB


@dataclass(frozen=True)
class SeedSpread:
    """Values over training seeds: mean, sample deviation and 95 % t interval.

    deviation: None below two seeds; low, high: None below three.
    """

    n: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether there is an interval and it leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread_over_seeds(values: Sequence[float]) -> SeedSpread:
    """Mean, deviation and mean +- t(n - 1) deviation / sqrt(n). Above 31 seeds the quantile of 31 is taken."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return SeedSpread(n, mean)
    deviation = statistics.stdev(values)
    if n < FEWEST_SEEDS:
        return SeedSpread(n, mean, deviation)
    half = T_QUANTILES[min(n - FEWEST_SEEDS, len(T_QUANTILES) - 1)] * deviation / math.sqrt(n)
    return SeedSpread(n, mean, deviation, mean - half, mean + half)


@dataclass(frozen=True)
class Interval:
    """A percentage (or rank) with its 95 % interval over questions; seeds: its spread where there are several."""

    value: float
    low: float
    high: float
    seeds: SeedSpread | None = None


@dataclass(frozen=True)
class Difference:
    """One percentage minus another, with its 95 % interval over questions and the two-sided p of no difference.

    is_floor: whether p is the smallest that so many resamples can tell, so that it may be smaller still. seeds: the
    spread of the paired differences, where there are several seeds.
    """

    value: float
    low: float
    high: float
    p: float
    is_floor: bool = False
    seeds: SeedSpread | None = None

    @property
    def is_significant_over_questions(self) -> bool:
        """Whether the interval over questions leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def is_significant(self) -> bool:
        """Whether every interval leaves out zero; never with two seeds, which have no interval."""
        return self.is_significant_over_questions and (self.seeds is None or self.seeds.is_significant)


def resample_counts(clusters: int, name: str, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """How often a resample drew each cluster: [rows, clusters] at a time, bootstrap.draws rows in all."""
    generator = np.random.default_rng([bootstrap.seed, zlib.crc32(name.encode())])
    at_once = max(1, CHUNK // clusters)
    for start in range(0, bootstrap.draws, at_once):
        rows = min(at_once, bootstrap.draws - start)
        picked = generator.integers(clusters, size=(rows, clusters))
        flat = (picked + clusters * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * clusters).reshape(rows, clusters)


def stack_statistics(score: Score, ids: Sequence[str]) -> np.ndarray:
    """The statistics of each question, [questions, columns]; its value where a score has no statistics."""
    if score.statistics:
        return np.array([score.statistics[name] for name in ids], dtype=float)
    return np.array([score.values[name] for name in ids], dtype=float)[:, None]


def sum_statistics(score: Score) -> np.ndarray:
    """The input of the score's aggregate: [1 + columns], the number of questions and the sums over all of them."""
    columns = stack_statistics(score, list(score.values))
    return np.array([len(columns), *(column.sum() for column in columns.T)])  # a column at a time: as np.mean adds


def number_clusters(scores: Sequence[Score], ids: Sequence[str]) -> np.ndarray:
    """The cluster of each question: [questions], from 0 in the order of their first question.

    A question without a shared picture is a cluster of its own; scores that name no pictures are ignored.
    Raises UserError if two scores disagree.
    """
    named = [score.clusters for score in scores if score.clusters]
    if any(clusters != named[0] for clusters in named[1:]):
        raise UserError(f"the scores of {scores[0].task} do not agree on which questions share a picture")
    pictures = named[0] if named else {}
    numbers: dict[tuple[bool, str], int] = {}
    keys = [(name in pictures, pictures.get(name, name)) for name in ids]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


class Resampled:
    """The scores of several sources, resampled together; a score without a value counts as missing.

    scores: source -> task -> Score. Raises UserError if two sources answered different questions of one task.
    """

    def __init__(self, scores: Mapping[str, Mapping[str, Score]], bootstrap: Bootstrap | None = None):
        self._points: dict[tuple[str, str], float] = {}
        self._draws: dict[tuple[str, str], np.ndarray] = {}
        self._clusters: dict[str, int] = {}
        for task in sorted({task for by_task in scores.values() for task in by_task}):
            of_task = {source: by_task[task] for source, by_task in scores.items() if task in by_task}
            of_task = {source: score for source, score in of_task.items() if score.value is not None}
            if of_task:
                self._add(task, of_task, bootstrap or Bootstrap())

    def _add(self, task: str, scores: Mapping[str, Score], bootstrap: Bootstrap) -> None:
        first, ids = next((source, list(score.values)) for source, score in scores.items())
        for source, score in scores.items():
            if set(score.values) != set(ids):
                raise UserError(f"{source} and {first} were scored on different questions of {task}")
            self._points[source, task] = float(AGGREGATES[score.aggregate](sum_statistics(score)))
        self._clusters[task] = int(number_clusters(list(scores.values()), ids).max()) + 1
        draws = resample_scores(list(scores.values()), ids, task, bootstrap)
        self._draws.update({(source, task): column for source, column in zip(scores, draws.T, strict=True)})

    def has(self, source: str, tasks: Sequence[str]) -> bool:
        """Whether there is at least one task, and the source has a score for each."""
        return bool(tasks) and all((source, task) in self._points for task in tasks)

    def point(self, source: str, tasks: Sequence[str]) -> float:
        """The mean over tasks in 0..1, each task counting the same however many questions it has."""
        return sum(self._points[source, task] for task in tasks) / len(tasks)

    def draws(self, source: str, tasks: Sequence[str]) -> np.ndarray:
        """The mean over tasks in 0..1 for each resample: [draws]."""
        first, *rest = (self._draws[source, task] for task in tasks)
        return sum(rest, first) / len(tasks)

    def has_noise(self, tasks: Sequence[str]) -> bool:
        """Whether resamples of these tasks can differ; those of a single question or picture cannot."""
        return all(self._clusters[task] > 1 for task in tasks)

    def interval(self, source: str, tasks: Sequence[str]) -> Interval:
        """Mean over tasks in per cent, with its interval."""
        return estimate_interval(self.point(source, tasks), self.draws(source, tasks))

    def difference(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        """`one` minus `other`, paired over questions."""
        point = self.point(one, tasks) - self.point(other, tasks)
        return estimate_difference(point, self.draws(one, tasks) - self.draws(other, tasks), self.has_noise(tasks))


def resample_scores(scores: Sequence[Score], ids: Sequence[str], task: str, bootstrap: Bootstrap) -> np.ndarray:
    """Scores of one task in 0..1 over resampled questions, the same ones for every source: [draws, sources]."""
    cluster_of = number_clusters(scores, ids)
    sizes = np.bincount(cluster_of)
    columns = [stack_statistics(score, ids) for score in scores]
    summed = np.zeros((len(sizes), sum(each.shape[1] for each in columns)))
    np.add.at(summed, cluster_of, np.concatenate(columns, axis=1))
    ends = np.cumsum([each.shape[1] for each in columns])
    parts = []
    for counts in resample_counts(len(sizes), task, bootstrap):
        n, sums = counts @ sizes, counts @ summed
        by_score = zip(scores, np.split(sums, ends[:-1], axis=1), strict=True)
        parts.append([AGGREGATES[score.aggregate](np.column_stack([n, part])) for score, part in by_score])
    return np.concatenate([np.stack(part, axis=1) for part in parts])


def estimate_interval(point: float, draws: np.ndarray) -> Interval:
    """A mean in 0..1 and its resamples as percentages."""
    return Interval(*_spread(point, draws))


def estimate_difference(point: float, draws: np.ndarray, has_noise: bool = True) -> Difference:
    """A difference and its resamples as percentages. p = twice the smaller share of draws beside zero, at most 1.

    Below ROUNDING a difference is zero: of sums in another order, or of the tiny numbers in BLEU's denominators.
    has_noise: False where resamples cannot differ; then the interval reaches to zero, and p is 1.
    """
    point = 0.0 if abs(point) < ROUNDING else point
    draws = np.where(np.abs(draws) < ROUNDING, 0.0, draws)
    if not has_noise:
        value, low, high = _spread(point, draws)
        return Difference(value, min(low, 0.0), max(high, 0.0), p=1.0)
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (side + 1) / (len(draws) + 1))
    return Difference(*_spread(point, draws), p=p, is_floor=side == 0)


def estimate_ranks(points: Sequence[float], draws: np.ndarray) -> list[Interval]:
    """The ranks of values among each other, 1 the highest, with the range of 95 % of the draws [values, draws].

    Equal values share the mean of their ranks.
    """
    ranks, drawn = rank_values(np.asarray(points)[:, None])[:, 0], rank_values(draws)
    tail = (100 - LEVEL) / 2
    ends = np.percentile(drawn, [tail, 100 - tail], axis=1, method="inverted_cdf")
    return [
        Interval(float(rank), min(float(low), float(rank)), max(float(high), float(rank)))
        for rank, low, high in zip(ranks, *ends, strict=True)
    ]


def rank_values(values: np.ndarray) -> np.ndarray:
    """The rank of every value within its column, 1 the highest: [values, columns].

    >>> rank_values(np.array([[0.2], [0.9], [0.2]]))[:, 0].tolist()
    [2.5, 1.0, 2.5]
    """
    lead = values[None, :, :] - values[:, None, :]  # of the second index over the first
    above, equal = lead > ROUNDING, np.abs(lead) <= ROUNDING
    return above.sum(axis=1) + (equal.sum(axis=1) + 1) / 2


def _spread(point: float, draws: np.ndarray) -> tuple[float, float, float]:
    """Point, low and high in per cent; the point always lies between them, even if nothing varies but the rounding."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return 100 * point, 100 * min(float(low), point), 100 * max(float(high), point)
