"""Yes-or-no questions, one a picture, by which the small base learns to compare what is said with what is shown.

A small model that meets such questions only among others, on all values alike, stays at chance: neither question nor
picture alone says anything about the answer (measured). So the first questions are on one value of each concept, which
the picture alone decides, and further values come one after the other; with all of them there, they become equally
frequent. Every fourth question asks what is shown, so that there is something to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from data_prep.mini.dialogues import (
    TAGS,
    Turn,
    ask_colour,
    ask_count,
    ask_icon,
    ask_letter,
    ask_material,
    ask_place,
    ask_quality,
    ask_shape,
    ask_size,
)
from data_prep.mini.scenes import Scene
from data_prep.mini.statements import list_statements

STEEPNESS = 1.5  # of the law by which the first questions choose a value: its rank to this power
ALL_VALUES = 0.75  # of the questions, from which on every value occurs
ASKED = 0.25  # of the questions, what is shown
_ASKS = {
    "colour": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "place": ask_place,
    "material": ask_material,
    "quality": ask_quality,
    "icon": ask_icon,
    "letter": ask_letter,
    "count": ask_count,
    "red": ask_count,
    "blue": ask_count,
}


class Shown(NamedTuple):
    """Which pictures show which value of a concept. values: in the order of becoming frequent; by_value: indices."""

    values: Sequence[str]
    by_value: Mapping[str, Sequence[int]]


def index_scenes(scenes: Sequence[Scene]) -> dict[str, Shown]:
    """Every concept with the scenes that show each of its values."""
    found: dict[str, tuple[Sequence[str], dict[str, list[int]]]] = {}
    for index, scene in enumerate(scenes):
        for statement in list_statements(Random(index), scene):
            by_value = found.setdefault(statement.concept, (statement.values, {}))[1]
            by_value.setdefault(statement.right, []).append(index)
    return {
        concept: Shown([value for value in values if value in by_value], by_value)
        for concept, (values, by_value) in sorted(found.items())
    }


def verify(rng: Random, progress: float, scenes: Sequence[Scene], index: Mapping[str, Shown]) -> tuple[int, Turn]:
    """A question and the index of its picture. progress: the share of the questions that came before, in [0, 1)."""
    concepts = list(index)
    concept = rng.choices(concepts, [len(index[concept].values) for concept in concepts])[0]
    values, by_value = index[concept]
    among = values[: 1 + int(len(values) * progress / ALL_VALUES)]
    exponent = STEEPNESS * (1 - progress)
    value = rng.choices(among, [rank**-exponent for rank in range(1, len(among) + 1)])[0]
    others = [other for other in values if other != value]
    true = rng.random() < 0.5 or not others
    picture = rng.choice(by_value[value if true else rng.choice(others)])
    if rng.random() < ASKED:
        question, _, answer = _ASKS[concept](rng, scenes[picture])
        return picture, Turn(f"{question} {TAGS[0]}", answer, concept)
    statement = next(one for one in list_statements(rng, scenes[picture]) if one.concept == concept)
    return picture, Turn(f"{statement.ask(rng, value)} {TAGS[0]}", "yes" if true else "no", "yes_no")
