"""Metrics of general benchmarks, in which questions belong together: F1 of "yes", accuracy+, and circular accuracy.

After POPE (arXiv 2305.10355), MME (arXiv 2306.13394) and MMBench (arXiv 2307.06281). The questions on one picture are a
group; a question without a picture is one of its own. Each metric takes the questions, the answers as their parser read
them (None where there is none) and whether each is right (1 or 0). Its aggregate computes the value from the sums of
the questions' statistics; the bootstrap resamples groups, as it does all questions that share a picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from eval.metrics.aggregates import AGGREGATES
from eval.parse import Answer, parse_yes_no
from robustmerge.stage.records import Example


class Grouped(NamedTuple):
    """A score: its aggregate, the statistics of each question, and parts in per cent."""

    aggregate: str
    statistics: list[list[float]]
    parts: dict[str, float | None]

    @property
    def value(self) -> float:
        """The score in per cent."""
        sums = np.array([len(self.statistics), *(column.sum() for column in np.array(self.statistics).T)])
        return 100 * float(AGGREGATES[self.aggregate](sums))


def f1_of_yes(examples: Sequence[Example], answers: Sequence[Answer | None], right: Sequence[float]) -> Grouped:
    """POPE: F1 of the answer "yes"; an unreadable answer counts as a miss where "yes" was due.

    parts: accuracy, precision, recall, how often "yes" was said, and F1 by category.
    """
    due = [parse_yes_no(example.accepted[0]) == "yes" for example in examples]
    said = [answer == "yes" for answer in answers]
    rows = [[float(d and s), float(s and not d), float(d and not s)] for d, s in zip(due, said, strict=True)]
    (tp, fp, fn), n = np.sum(rows, axis=0), len(rows)
    parts: dict[str, float | None] = {
        "accuracy": 100 * sum(right) / n,
        "precision": 100 * float(tp / max(tp + fp, 1)),
        "recall": 100 * float(tp / max(tp + fn, 1)),
        "said_yes": 100 * sum(said) / n,
    }
    for category in list_categories(examples):
        of_it = [row for row, example in zip(rows, examples, strict=True) if example.category == category]
        parts[f"f1_{category}"] = Grouped("f1", of_it, {}).value
    return Grouped("f1", rows, parts)


def accuracy_plus(examples: Sequence[Example], answers: Sequence[Answer | None], right: Sequence[float]) -> Grouped:
    """MME: the mean over categories of (accuracy + accuracy+) / 2, their share of 200 points each.

    accuracy+ is the share of groups with every question right. parts: points (no per cent), both accuracies, and both
    by category.
    """
    categories, groups = list_categories(examples), _find_groups(examples, right)
    rows = [[0.0] * (2 * len(categories)) for _ in examples]
    for row, example, one, (share, whole) in zip(rows, examples, right, groups, strict=True):
        place = 2 * categories.index(example.category)
        row[place : place + 2] = share, share * (one + whole) / 2 / len(categories)
    parts = _accuracies(right, groups)
    for category in categories:
        of_it = [index for index, example in enumerate(examples) if example.category == category]
        by_name = _accuracies([right[index] for index in of_it], [groups[index] for index in of_it])
        parts |= {f"{category}_{name}": value for name, value in by_name.items()}
    scored = Grouped("sum_of_means", rows, {})
    return scored._replace(parts={"points": 2 * len(categories) * scored.value, **parts})


def circular(examples: Sequence[Example], answers: Sequence[Answer | None], right: Sequence[float]) -> Grouped:
    """MMBench: the share of groups, the rotations of one question, with every answer right. parts: accuracy."""
    groups = _find_groups(examples, right)
    rows = [[share, share * whole] for share, whole in groups]
    return Grouped("sum_of_means", rows, {"accuracy": _accuracies(right, groups)["accuracy"]})


def list_categories(examples: Sequence[Example]) -> list[str]:
    """The categories of the questions, each once."""
    return sorted({example.category for example in examples})


def _find_groups(examples: Sequence[Example], right: Sequence[float]) -> list[tuple[float, float]]:
    """For each question its share of its group, and whether the whole group is right."""
    keys = [(one.category, one.image is None, one.image or one.question_id) for one in examples]
    sizes, hits = Counter(keys), Counter[tuple[str, bool, str]]()
    for key, value in zip(keys, right, strict=True):
        hits[key] += int(value)
    return [(1 / sizes[key], float(hits[key] == sizes[key])) for key in keys]


def _accuracies(right: Sequence[float], groups: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Accuracy over questions and accuracy+ over groups, in per cent."""
    plus = sum(share * whole for share, whole in groups) / sum(share for share, _ in groups)
    return {"accuracy": 100 * sum(right) / len(right), "accuracy_plus": 100 * plus}


GROUP_METRICS: dict[str, Callable[[Sequence[Example], Sequence[Answer | None], Sequence[float]], Grouped]] = {
    "accuracy_plus": accuracy_plus,
    "circular": circular,
    "f1_of_yes": f1_of_yes,
}
