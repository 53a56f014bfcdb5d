"""Means of scores and paired differences between sources, with their noise over questions and over training seeds."""

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
    estimate_ranks,
    spread_over_seeds,
)

Seed = int | None  # None: of a source that is not trained, so that it stands beside every seed


class Estimates:
    """Values and paired differences of result groups, by their titles.

    A value is the mean over the group's seeds. Its interval over questions resamples what each question scored on
    average over the seeds; a difference is taken over the seeds that both groups have.

    Raises UserError if two sources answered different questions of one task.
    """

    def __init__(self, groups: Sequence[ResultGroup], tasks: Sequence[str], bootstrap: Bootstrap):
        self._seeds: dict[str, list[Seed]] = {group.title: [one.seed for one in group.results] for group in groups}
        self.has_several_seeds = len(list_seeds(groups)) > 1
        scores = {
            _name(group.title, result.seed): {task: result.scores[task] for task in tasks if task in group.tasks}
            for group in groups
            for result in group.results
        }
        self._resampled = Resampled(scores, bootstrap)
        self._intervals: dict[tuple[str, ...], Interval] = {}
        self._differences: dict[tuple[str, ...], Difference] = {}

    def has(self, title: str, tasks: Sequence[str]) -> bool:
        """Whether the group has a score for each of the tasks, and there is at least one."""
        return self._resampled.has(_name(title, self._seeds[title][0]), tasks)

    def by_seed(self, title: str, tasks: Sequence[str]) -> dict[Seed, float]:
        """Mean over tasks in per cent for every seed; each task counts the same, however many questions it has."""
        return {seed: 100 * self._resampled.point(_name(title, seed), tasks) for seed in self._seeds[title]}

    def interval(self, title: str, tasks: Sequence[str]) -> Interval:
        """Mean over tasks and seeds in per cent, with its interval."""
        key = (title, *tasks)
        if key not in self._intervals:
            points, draws = self._resample(title, self._seeds[title], tasks)
            interval = estimate_interval(float(points.mean()), draws)
            self._intervals[key] = replace(interval, seeds=_spread(points) if len(points) > 1 else None)
        return self._intervals[key]

    def difference(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        """`one` minus `other`, paired over questions and over the seeds that both have.

        Groups that share no seed are compared as they are. Where there are several seeds, a difference over fewer than
        three pairs is never significant.
        """
        key = (one, other, *tasks)
        if key not in self._differences:
            self._differences[key] = self._compare(one, other, tasks)
        return self._differences[key]

    def ranks(self, titles: Sequence[str], tasks: Sequence[str]) -> list[Interval]:
        """The rank of each group among these, 1 the best, by its mean, with the range of 95 % of the draws.

        A draw is a training seed that all of them have and a resample of the questions, the same for all; without such
        a seed it is a resample of the means.
        """
        shared = [seed for seed in self._seeds[titles[0]] if all(seed in self._seeds[title] for title in titles)]
        of_draws = [[[seed] for seed in shared] or [self._seeds[title]] for title in titles]
        points = [self.interval(title, tasks).value / 100 for title in titles]
        draws = [
            np.concatenate([self._resample(title, seeds, tasks)[1] for seeds in of_draw])
            for title, of_draw in zip(titles, of_draws, strict=True)
        ]
        return estimate_ranks(points, np.array(draws))

    def _compare(self, one: str, other: str, tasks: Sequence[str]) -> Difference:
        seeds, others = self._seeds[one], self._seeds[other]
        are_trained = None not in (*seeds, *others)
        shared = [seed for seed in seeds if seed in others]
        if are_trained and shared:
            seeds = others = shared
        points, draws = self._resample(one, seeds, tasks)
        other_points, other_draws = self._resample(other, others, tasks)
        has_noise = self._resampled.has_noise(tasks)
        mean = float(points.mean() - other_points.mean())
        difference = estimate_difference(mean, draws - other_draws, has_noise)
        pairs = np.array([]) if are_trained and not shared else points - other_points
        if len(pairs) > 1:
            return replace(difference, seeds=_spread(pairs))
        if self.has_several_seeds:
            return replace(difference, seeds=SeedSpread(len(pairs), difference.value))
        return difference

    def _resample(self, title: str, seeds: Sequence[Seed], tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Means over tasks in 0..1, [seeds], and the resamples of their mean, [draws]."""
        names = [_name(title, seed) for seed in seeds]
        points = np.array([self._resampled.point(name, tasks) for name in names])
        first, *rest = (self._resampled.draws(name, tasks) for name in names)
        return points, sum(rest, first) / len(names)


def _name(title: str, seed: Seed) -> str:
    return title if seed is None else f"{title}, seed {seed}"


def _spread(points: np.ndarray) -> SeedSpread:
    return spread_over_seeds([100 * float(point) for point in points])
