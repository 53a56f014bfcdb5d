"""95 % intervals and paired differences by the bootstrap.

Tasks are fixed; questions are resampled with replacement within their task. The resamples of a task depend on
the seed, the task's name and its number of questions only, so all sources see the same ones: differences are
paired, and adding a source changes no other's interval. They say how far a result depends on the questions drawn,
not how far on the training seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.settings import Bootstrap
from robustmerge.records import Score
from robustmerge.settings import UserError

LEVEL = 95.0
CHUNK = 2_000_000  # questions drawn at once: bounds the memory to some 50 MB


@dataclass(frozen=True)
class Interval:
    """A percentage with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One percentage minus another, with its 95 % interval and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


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

    def interval(self, source: str, tasks: Sequence[str]) -> Interval:
        """The mean over tasks, each task counting the same however many questions it has."""
        return Interval(*_spread(self._mean_point(source, tasks), self._mean_draws(source, tasks)))

    def difference(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        """`one` minus `other`. p = twice the smaller share of draws on either side of zero, at most 1."""
        draws = self._mean_draws(one, tasks) - self._mean_draws(other, tasks)
        point = self._mean_point(one, tasks) - self._mean_point(other, tasks)
        side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        p = min(1.0, 2 * (side + 1) / (len(draws) + 1))
        return Difference(*_spread(point, draws), p=p)

    def _mean_point(self, source: str, tasks: Sequence[str]) -> float:
        return sum(self._points[source, task] for task in tasks) / len(tasks)

    def _mean_draws(self, source: str, tasks: Sequence[str]) -> np.ndarray:
        return sum(self._draws[source, task] for task in tasks) / len(tasks)  # [draws]


def _spread(point: float, draws: np.ndarray) -> tuple[float, float, float]:
    """Point, low and high in per cent. Where nothing varies, rounding must not put the point outside."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return 100 * point, 100 * min(float(low), point), 100 * max(float(high), point)
