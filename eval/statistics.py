"""95 % intervals: over questions by the bootstrap, over training seeds by Student's t.

Tasks are fixed; questions are resampled with replacement within their task. The resamples of a task depend on
the seed, the task's name and its number of questions only, so all sources see the same ones: differences are
paired, and adding a source changes no other's interval. They say how far a result depends on the questions drawn,
not how far on the training seed: that is what `spread_over_seeds` says.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.settings import Bootstrap
from robustmerge.records import Score
from robustmerge.settings import UserError

LEVEL = 95.0
FEWEST_SEEDS = 3  # of which an interval is given
# Quantiles 0.975 of Student's t for 2, 3, ... 30 degrees of freedom.
T_QUANTILES = (
    4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
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
    def is_clear(self) -> bool:
        """Whether there is an interval and it leaves out zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def spread_over_seeds(values: Sequence[float]) -> SeedSpread:
    """mean, deviation and mean +- t(n - 1) deviation / sqrt(n). Above 31 seeds the quantile of 31 is taken."""
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
    """A percentage with its 95 % interval over questions; seeds: its spread where there are several."""

    value: float
    low: float
    high: float
    seeds: SeedSpread | None = None


@dataclass(frozen=True)
class Difference:
    """One percentage minus another, with its 95 % interval over questions and the two-sided p of no difference.

    seeds: the spread of the paired differences, where there are several seeds.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: SeedSpread | None = None

    @property
    def is_clear_of_questions(self) -> bool:
        """Whether the interval over questions leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def is_clear(self) -> bool:
        """Whether every interval leaves out zero; with two seeds, of which there is none, it never is."""
        return self.is_clear_of_questions and (self.seeds is None or self.seeds.is_clear)


def resample_means(values: np.ndarray, name: str, bootstrap: Bootstrap) -> np.ndarray:
    """Means over resampled questions. values: [questions, sources] in 0..1 -> [draws, sources]."""
    questions = len(values)
    generator = np.random.default_rng([bootstrap.seed, zlib.crc32(name.encode())])
    means, at_once = [], max(1, CHUNK // questions)
    for start in range(0, bootstrap.draws, at_once):
        rows = min(at_once, bootstrap.draws - start)
        picked = generator.integers(questions, size=(rows, questions))
        flat = (picked + questions * np.arange(rows)[:, None]).ravel()
        counts = np.bincount(flat, minlength=rows * questions).reshape(rows, questions)
        means.append(counts @ values / questions)  # [rows, sources]
    return np.concatenate(means)


class Resampled:
    """The scores of several sources, resampled together.

    scores: source -> task -> Score. Raises UserError if two sources answered different questions of one task.
    """

    def __init__(self, scores: Mapping[str, Mapping[str, Score]], bootstrap: Bootstrap | None = None):
        self._points: dict[tuple[str, str], float] = {}
        self._draws: dict[tuple[str, str], np.ndarray] = {}
        for task in sorted({task for by_task in scores.values() for task in by_task}):
            sources = [source for source, by_task in scores.items() if task in by_task]
            self._add(task, sources, [scores[source][task] for source in sources], bootstrap or Bootstrap())

    def _add(self, task: str, sources: Sequence[str], scores: Sequence[Score], bootstrap: Bootstrap) -> None:
        ids = list(scores[0].values)
        for source, score in zip(sources, scores, strict=True):
            if set(score.values) != set(ids):
                raise UserError(f"{source} and {sources[0]} were scored on different questions of {task}")
        values = np.array([[score.values[name] for score in scores] for name in ids])  # [questions, sources]
        draws = resample_means(values, task, bootstrap)
        for column, source in enumerate(sources):
            self._points[source, task] = float(values[:, column].mean())
            self._draws[source, task] = draws[:, column]

    def has(self, source: str, tasks: Sequence[str]) -> bool:
        """Whether the source has a score for each of these tasks, and there is one."""
        return bool(tasks) and all((source, task) in self._points for task in tasks)

    def point(self, source: str, tasks: Sequence[str]) -> float:
        """The mean over tasks in 0..1, each task counting the same however many questions it has."""
        return sum(self._points[source, task] for task in tasks) / len(tasks)

    def draws(self, source: str, tasks: Sequence[str]) -> np.ndarray:
        """The same for each resample: [draws]."""
        return sum(self._draws[source, task] for task in tasks) / len(tasks)

    def interval(self, source: str, tasks: Sequence[str]) -> Interval:
        """The mean over tasks in per cent."""
        return interval_of(self.point(source, tasks), self.draws(source, tasks))

    def difference(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        """`one` minus `other`, paired over questions."""
        point = self.point(one, tasks) - self.point(other, tasks)
        return difference_of(point, self.draws(one, tasks) - self.draws(other, tasks))


def interval_of(point: float, draws: np.ndarray) -> Interval:
    """A mean in 0..1 and its resamples as percentages."""
    return Interval(*_spread(point, draws))


def difference_of(point: float, draws: np.ndarray) -> Difference:
    """A difference and its resamples. p = twice the smaller share of draws on either side of zero, at most 1."""
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(*_spread(point, draws), p=min(1.0, 2 * (side + 1) / (len(draws) + 1)))


def _spread(point: float, draws: np.ndarray) -> tuple[float, float, float]:
    """Point, low and high in per cent. Where nothing varies, rounding must not put the point outside."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return 100 * point, 100 * min(float(low), point), 100 * max(float(high), point)
