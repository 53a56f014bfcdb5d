"""From sums over questions to a score: how the value of a task follows from what is known of each question.

An aggregate is a function of sums, so that the bootstrap needs nothing else: sums [..., 1 + columns], the first column
the number of questions, the others the sums of their statistics (of their value, for a mean) -> scores in 0..1 [...].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], np.ndarray]


def mean(sums: np.ndarray) -> np.ndarray:
    """The mean of the questions' values. sums: [..., 2]."""
    return sums[..., 1] / sums[..., 0]


AGGREGATES: dict[str, Aggregate] = {"mean": mean}
