"""The scores of all rows of a report, over questions and over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eval.report.results import ResultGroup, list_seeds
from eval.settings import Bootstrap
from eval.statistics import (
    Difference,
    Interval,
    Resampled,
    SeedSpread,
    estimate_difference,
    estimate_interval,
    spread_over_seeds,
)

Seed = int | None  # None: of a source that is not trained, so that it stands beside every seed


class Estimates:
    """Values and paired differences of rows, by key.

    A value is the mean over the row's seeds. Its interval over questions resamples what each question scored on
    average over the seeds; a difference is taken over the seeds that both rows have. Raises UserError if two sources
    answered different questions of one task.
    """

    def __init__(self, rows: Sequence[ResultGroup], tasks: Sequence[str], bootstrap: Bootstrap):
        self._seeds: dict[str, list[Seed]] = {row.key: [point.seed for point in row.points] for row in rows}
        self._several = len(list_seeds(rows)) > 1
        scores = {
            _name(row.key, point.seed): {task: point.scores[task] for task in tasks if task in row.tasks}
            for row in rows
            for point in row.points
        }
        self._resampled = Resampled(scores, bootstrap)
        self._found: dict[tuple, Interval | Difference] = {}

    def has(self, key: str, tasks: Sequence[str]) -> bool:
        """Whether the row has a score for each of these tasks, and there is one."""
        return self._resampled.has(_name(key, self._seeds[key][0]), tasks)

    @property
    def has_several_seeds(self) -> bool:
        """Whether there is a spread over seeds to tell."""
        return self._several

    def by_seed(self, key: str, tasks: Sequence[str]) -> dict[Seed, float]:
        """The mean over tasks in per cent, each task counting the same however many questions it has."""
        return {seed: 100 * self._resampled.point(_name(key, seed), tasks) for seed in self._seeds[key]}

    def interval(self, key: str, tasks: Sequence[str]) -> Interval:
        """The mean over tasks and seeds in per cent."""
        asked = (key, *tasks)
        if asked not in self._found:
            points, draws = self._of(key, self._seeds[key], tasks)
            self._found[asked] = replace(estimate_interval(float(points.mean()), draws), seeds=_over_seeds(points))
        return self._found[asked]

    def difference(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        """`one` minus `other`, paired over questions and over the seeds that both have.

        Rows that share no seed are compared as they are. Where there are several seeds, a difference over fewer than
        three pairs is never clear.
        """
        asked = ("minus", one, other, *tasks)
        if asked not in self._found:
            self._found[asked] = self._compare(one, other, tasks)
        return self._found[asked]

    def _compare(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        seeds, others = self._seeds[one], self._seeds[other]
        trained = None not in (*seeds, *others)
        shared = [seed for seed in seeds if seed in others]
        if trained and shared:
            seeds = others = shared
        points, draws = self._of(one, seeds, tasks)
        less_points, less_draws = self._of(other, others, tasks)
        has_noise = self._resampled.has_noise(tasks)
        found = estimate_difference(float(points.mean() - less_points.mean()), draws - less_draws, has_noise)
        pairs = [] if trained and not shared else points - less_points
        if len(pairs) > 1:
            return replace(found, seeds=_over_seeds(pairs))
        return replace(found, seeds=SeedSpread(len(pairs), found.value)) if self._several else found

    def _of(self, key: str, seeds: Sequence[Seed], tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Points in 0..1, [seeds], and resamples of their mean, [draws]."""
        names = [_name(key, seed) for seed in seeds]
        points = np.array([self._resampled.point(name, tasks) for name in names])
        return points, sum(self._resampled.draws(name, tasks) for name in names) / len(names)


def _name(key: str, seed: Seed) -> str:
    return key if seed is None else f"{key}, seed {seed}"


def _over_seeds(points: np.ndarray) -> SeedSpread | None:
    return spread_over_seeds([100 * float(point) for point in points]) if len(points) > 1 else None
