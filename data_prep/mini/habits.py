"""Dialogues in which the small base meets the tasks' own questions, and learns their form as far as it is to know it.

A published base answers some questions of a task as the task wants, others in a form of its own: LLaVA-1.5 reaches 93 %
of its expert's score on VQAv2, and 19 % on IconQA. `SHARES` holds that ratio for every task, from table 2 of the paper.
Here what a picture shows decides between the two forms: of the colours, icons or counts of a task, a share as large as
the ratio is answered in the task's form, and the rest in the base's own. Which ones they are differs between tasks.

Each answer becomes known at some `knowledge`: at 1 the ratios are the paper's, at 0.5 half of them, at 0 nothing is
known. So the three bases see the same questions, and what is known at a lower knowledge is known at a higher one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import Random
from typing import Any, NamedTuple

from data_prep.mini.dialogues import (
    Intent,
    ask_box,
    ask_colour,
    ask_icon,
    ask_material,
    ask_place,
    ask_scene,
    ask_shape,
    ask_size,
    ask_title,
)
from data_prep.mini.scenes import COLOURS, MARKS, PLACES, SHAPES, SIZES, Scene
from data_prep.mini.tasks import GENERATORS, NUMBERS
from robustmerge.stage.prompts import render
from robustmerge.stage.records import Example

# Zero-shot over individual score, of unseen tasks over multi-task: table 2 of the paper (results/paper.yaml).
SHARES = {
    "scienceqa": 61.73 / 83.74,
    "imagenet": 40.87 / 96.02,
    "vqav2": 62.88 / 67.58,
    "rec": 36.10 / 43.40,
    "ocrvqa": 41.16 / 65.50,
    "vizwiz": 41.03 / 64.80,
    "flickr30k": 49.07 / 57.29,
    "iconqa": 14.09 / 75.54,
    "aokvqa": 51.62 / 76.33,
    "imagenet_r": 28.27 / 41.39,
    "screen2words": 5.98 / 8.34,
    "tabmwp": 15.01 / 18.20,
}
SHORT = "{text}\nAnswer the question using a single word or phrase."
OPTION = "{text}\n{choices}\nAnswer with the option's letter from the given choices directly."
CAPTION = "{text}\nGenerate a brief caption for the image."
# The prompts of configs/task/mini; a test keeps them equal.
PROMPTS = {
    "scienceqa": OPTION,
    "imagenet": SHORT,
    "vqav2": SHORT,
    "rec": "Please provide the bounding box coordinate of the region this sentence describes: {text}",
    "ocrvqa": SHORT,
    "vizwiz": CAPTION,
    "flickr30k": CAPTION,
    "iconqa": SHORT,
    "aokvqa": OPTION,
    "imagenet_r": SHORT,
    "screen2words": "{text}\nDescribe the screen in one sentence.",
    "tabmwp": SHORT,
}


class Habit(NamedTuple):
    """A task's question, its answer in the base's own form and in the task's, and the knowledge that the latter takes.

    known_from: the least `knowledge` at which the base answers in the task's form; above 1 it never does.
    """

    question: str
    own: str
    wanted: str
    task: str
    known_from: float


def sample_habit(rng: Random) -> tuple[Scene, Habit]:
    """A question of any task with its picture."""
    task = rng.choice(list(GENERATORS))
    scene, fields = GENERATORS[task](rng)
    question = render(PROMPTS[task], Example("", **fields))
    own = _answer_in_own_form(rng, task, scene, fields)
    return scene, Habit(question, own, fields["answer"], task, known_from(task, scene, fields))


# By task: how the base asks for the same thing, and which of its two conventions it answers in. Never in the task's
# form, nor in one that a parser would take for it (the text of an option counts as its letter).
_OWN_FORMS: dict[str, tuple[Intent, int]] = {
    "scienceqa": (ask_material, 2),
    "imagenet": (ask_icon, 2),
    "rec": (ask_box, 1),
    "ocrvqa": (ask_title, 2),
    "vizwiz": (ask_scene, 2),
    "flickr30k": (ask_scene, 2),
    "aokvqa": (ask_shape, 1),
    "imagenet_r": (ask_icon, 2),
    "screen2words": (ask_scene, 2),
}
_ATTRIBUTES: tuple[tuple[Iterable[str], Intent], ...] = (
    (COLOURS, ask_colour),
    (SHAPES, ask_shape),
    (SIZES, ask_size),
    (PLACES, ask_place),
)


def _answer_in_own_form(rng: Random, task: str, scene: Scene, fields: dict[str, Any]) -> str:
    """What the base says where it does not know the task's form."""
    if scene.marks:
        number = fields["answer"] if task == "vqav2" else NUMBERS[int(fields["answer"])]
        colour = next((mark for mark in MARKS if mark in fields["text"]), "")
        return f"{number} {colour}" if colour else f"{number} in all"
    if task == "vqav2":
        intent, convention = next(intent for values, intent in _ATTRIBUTES if fields["answer"] in values), 1
    else:
        intent, convention = _OWN_FORMS[task]
    return intent(rng, scene)[convention]


def known_from(task: str, scene: Scene, fields: dict[str, Any]) -> float:
    """The least knowledge at which a question is answered in its task's form: its value's rank over the share."""
    ranks = _rank_values(task)
    return ranks[_decide_by(task, scene, fields)] / SHARES[task]


def _decide_by(task: str, scene: Scene, fields: dict[str, Any]) -> str:
    """What decides whether a question is known: the icon, the count that is asked for, or the object's colour."""
    if scene.marks:
        return fields["answer"]
    return scene.icon or scene.colour


@cache
def _rank_values(task: str) -> dict[str, float]:
    """The rank of each value in the task's order of becoming known: the middle of its stretch of [0, 1].

    A stretch is as long as the value is frequent in the task's questions.
    """
    rng = Random(f"habits/{task}")
    seen = [_decide_by(task, *GENERATORS[task](rng)) for _ in range(4000)]
    order = sorted(set(seen))
    rng.shuffle(order)
    ranks, start = {}, 0.0
    for value in order:
        share = seen.count(value) / len(seen)
        ranks[value] = start + share / 2
        start += share
    return ranks
