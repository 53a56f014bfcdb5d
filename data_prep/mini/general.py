"""Questions after the general benchmarks of the paper's table 3: POPE-like, MME-like and MMBench-like sets.

They are not POPE, MME and MMBench, whose rules they follow on the pictures and words of the mini benchmark, in the
wordings of the base's dialogues. Each `make_NAME` takes a seeded `random.Random` and returns a scene and the fields of
the `Example`s on it, which belong together; `GENERAL` lists them by name with their number. The order of the random
draws is part of the sets: another order is other data.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from data_prep.mini.dialogues import CHOOSING
from data_prep.mini.scenes import (
    COLOURS,
    ICONS,
    MATERIALS,
    SHAPES,
    Scene,
    sample_book,
    sample_icon,
    sample_marks,
    sample_object,
)
from data_prep.mini.statements import list_statements, with_article

Questions = tuple[Scene, list[dict[str, Any]]]  # a scene and the fields of its Examples

OBJECTS = (*SHAPES, *ICONS)
POPULAR = (*SHAPES[:3], *ICONS[:3])  # what the base's dialogues name most often, by Zipf's law


def make_pope_like(rng: Random) -> Questions:
    """POPE: asks about the object that is shown, and about one that is not: any, a popular or an adversarial one.

    POPE's adversarial objects often occur beside one that is shown. A picture here has one object, so the adversarial
    one is another of its kind: a shape for a shape, an icon for an icon.
    """
    scene = _sample_thing(rng)
    shown, alike = (scene.icon, ICONS) if scene.icon else (scene.shape, SHAPES)
    kinds = {"random": OBJECTS, "popular": POPULAR, "adversarial": alike}
    kind = rng.choice(list(kinds))
    absent = rng.choice([name for name in kinds[kind] if name != shown])
    return scene, [
        {"text": f"Is there {with_article(name)} in the picture?", "answer": answer, "category": kind}
        for name, answer in ((shown, "yes"), (absent, "no"))
    ]


def _sample_thing(rng: Random) -> Scene:
    """A shape or an icon, in colour."""
    return sample_object(rng) if rng.random() < 0.5 else sample_icon(rng, "color")


class Subtask(NamedTuple):
    """A subtask of MME: how its pictures are sampled, and the concepts of `list_statements` that it asks about."""

    sample: Callable[[Random], Scene]
    concepts: tuple[str, ...]


SUBTASKS = {
    "existence": Subtask(_sample_thing, ("shape", "icon")),
    "count": Subtask(sample_marks, ("count", "red", "blue")),
    "position": Subtask(sample_object, ("place",)),
    "color": Subtask(sample_object, ("colour",)),
    "OCR": Subtask(sample_book, ("letter",)),
}


def make_mme_like(rng: Random) -> Questions:
    """MME: two questions on a subtask, the first to be answered by yes, the second by no."""
    category = rng.choice(list(SUBTASKS))
    scene = SUBTASKS[category].sample(rng)
    asked = [one for one in list_statements(rng, scene) if one.concept in SUBTASKS[category].concepts]
    statement = rng.choice(asked)
    wrong = rng.choice([value for value in statement.values if value != statement.right])
    return scene, [
        {"text": statement.ask(rng, value), "answer": answer, "category": category}
        for value, answer in ((statement.right, "yes"), (wrong, "no"))
    ]


def make_mmbench_like(rng: Random) -> Questions:
    """MMBench: one question for every rotation of its four options, answered by the letter of the right one."""
    scene = _sample_thing(rng)
    kinds = {"shape": (SHAPES, scene.shape), "color": (COLOURS, scene.colour), "material": (MATERIALS, scene.material)}
    category = "icon" if scene.icon else rng.choice(list(kinds))
    values, right = kinds.get(category, (ICONS, scene.icon))
    options = rng.sample([right, *rng.sample([value for value in values if value != right], 3)], 4)
    text = rng.choice(CHOOSING)
    rotations = [(*options[start:], *options[:start]) for start in range(4)]
    return scene, [
        {"text": text, "answer": "ABCD"[choices.index(right)], "choices": choices, "category": category}
        for choices in rotations
    ]


class General(NamedTuple):
    """A generator and the number of questions that it asks about each picture."""

    make: Callable[[Random], Questions]
    questions: int


GENERAL = {
    "pope_like": General(make_pope_like, 2),
    "mme_like": General(make_mme_like, 2),
    "mmbench_like": General(make_mmbench_like, 4),
}
