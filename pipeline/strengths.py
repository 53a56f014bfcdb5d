"""The choice of a method's strength by val scores.

A published default belongs to other experts than ours. So every method is also evaluated at the strength that, among
multiples of its default update, has the highest mean score on the val questions of the seen tasks. Nothing here reads
a test question, and nothing is written: the choice is made again from the val scores, whenever it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.settings import TaskData
from eval.report.results import Choice
from pipeline.program import parse_overrides
from robustmerge.stage.settings import Problem

DIGITS = 9  # val means that agree in so many decimals are equal: sums of the same scores in another order


def choose_strength(tried: Mapping[float, tuple[str, float]]) -> Choice:
    """Choose from factor -> (strength, mean val score): the highest mean, of equal ones the factor nearest to 1.

    Nearest by ratio; of 0.5 and 2.0 it is the smaller.

    >>> choose_strength({0.25: ("0.5", 40.0), 0.5: ("0.7", 42.0), 1.4: ("1.2", 42.0), 4.0: ("2", 10.0)}).factor
    1.4
    """
    means = {factor: mean for factor, (_, mean) in tried.items()}
    factor = max(means, key=lambda factor: (round(means[factor], DIGITS), -abs(math.log(factor)), -factor))
    return Choice(factor, tried[factor][0], factor in (min(means), max(means)), means)


def problems_of_grid(grid: Sequence[float] | None) -> list[Problem]:
    """Problems of `strength_grid`; null and an empty list mean that nothing is chosen."""
    key, grid = "strength_grid", grid or ()
    bad = [factor for factor in grid if not 0 < factor < math.inf]
    doubled = sorted({factor for factor in grid if list(grid).count(factor) > 1})
    return [
        *(Problem(f"a multiple of the update must be above 0 and finite, got {factor:g}", key) for factor in bad),
        *(Problem(f"{factor:g} is given more than once", key) for factor in doubled),
    ]


def has_val(questions: Path, data: TaskData) -> bool:
    """Whether a task has val questions; before its data is prepared, whether it will have any."""
    if questions.exists():
        return questions.stat().st_size > 0
    cut_from_train = data.counts.val > 0 and (data.generator is not None or "train" in data.splits)
    return "val" in data.splits or data.val_of_test > 0 or cut_from_train


def is_set_by_user(merge: Mapping[str, Any], overrides: Iterable[str]) -> bool:
    """Whether the user set the strength, so that none is chosen. merge: the composed config; overrides: as typed.

    No method's file gives `strength`: the defaults by space are in `strengths`. A function has one in its file, so only
    the command line tells whether it is the user's.
    """
    return merge.get("strength") is not None or "merge.params.strength" in parse_overrides(overrides)


def describe_choice(choice: Choice) -> str:
    """Describe a choice: `strength 1.41 (0.5 x the default's update) chosen on val: 38.2 against 35.0 at ...`."""
    what = "the default" if choice.factor == 1 else f"{choice.factor:g} x the default's update"
    text = f"strength {choice.strength} ({what}) chosen on val: {choice.means[choice.factor]:.1f}"
    if choice.factor != 1 and 1 in choice.means:
        text += f" against {choice.means[1]:.1f} at the default"
    if not choice.at_end:
        return text
    if len(choice.means) == 1:
        return f"{text}; it is the only one of the grid"
    end, more = ("largest", "more") if choice.factor == max(choice.means) else ("smallest", "less")
    return f"{text}; it is the grid's {end}, {more} may be better (strength_grid)"
