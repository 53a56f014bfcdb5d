"""What can be asked about a scene by yes or no, and the words for it that the base's dialogues share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from data_prep.mini.scenes import (
    COLOURS,
    ICONS,
    LETTERS,
    MARKS,
    MATERIALS,
    MOST_IN_ALL,
    MOST_MARKS,
    PLACES,
    QUALITIES,
    SHAPES,
    SIZES,
    Scene,
)
from data_prep.mini.tasks import NUMBERS

LOOSE_SIZES = {"small": "tiny", "medium": "normal", "large": "huge"}
LOOSE_PLACES = {"top": "upper", "bottom": "lower", "center": "middle"}


def loosen_place(place: str) -> str:
    return " ".join(LOOSE_PLACES.get(word, word) for word in place.split())


def with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def name_thing(rng: Random) -> str:
    """A word for the one object of a picture."""
    return rng.choice(("thing", "figure", "item", "object", "form"))


class Statement(NamedTuple):
    """What can be asked about a scene by yes or no. values: all of the concept; right: that of the scene.

    forms: of the question; truth: what is right, in words.
    """

    concept: str
    forms: tuple[str, ...]
    values: Sequence[str]
    right: str
    truth: str

    def ask(self, rng: Random, value: str) -> str:
        """The question whether the scene has a value."""
        return rng.choice(self.forms).format(value=value, a=with_article(value))


def list_statements(rng: Random, scene: Scene) -> list[Statement]:
    """What can be asked about a scene by yes or no."""
    if scene.kind == "icon":
        forms: tuple[str, ...] = ("Is this {a}?", "Is there {a} in the picture?", "Do you see {a}?")
        return [Statement("icon", forms, ICONS, scene.icon, f"it looks like {with_article(scene.icon)}")]
    if scene.kind == "book":
        letter = scene.letters[0]
        forms = ("Does the title begin with {value}?", "Is the first letter {value}?")
        return [Statement("letter", forms, tuple(LETTERS), letter, f"the letter is {letter}")]
    if scene.marks:
        return [_count_marks(scene, colour) for colour in (None, *MARKS)]
    thing = name_thing(rng)
    is_it = (f"Is the {thing} {{value}}?", f"Is this {thing} {{value}}?", "Is it {value}?")
    is_a = ("Is it {a}?", "Is there {a} in the picture?", f"Is this {thing} {{a}}?", "Do you see {a}?")
    is_at = (f"Is the {thing} at the {{value}}?", "Is it at the {value}?")
    statements = [
        Statement("shape", is_a, SHAPES, scene.shape, f"it is {with_article(scene.shape)}"),
        Statement("size", is_it, tuple(SIZES), scene.size, f"it looks {LOOSE_SIZES[scene.size]}"),
        Statement("place", is_at, PLACES, scene.place, f"it sits in the {loosen_place(scene.place)} part"),
    ]
    if scene.colour:
        is_of = (f"Is the {thing} made of {{value}}?", "Is it of {value}?")
        statements += [
            Statement("colour", is_it, tuple(COLOURS), scene.colour, f"it is {scene.colour}"),
            Statement("material", is_of, MATERIALS, scene.material, f"it is made of {scene.material}"),
        ]
    if scene.kind == "object" and scene.colour:
        forms = ("Is the photo {value}?", "Is this a {value} picture?")
        statements.append(Statement("quality", forms, QUALITIES, scene.quality, f"the photo is {scene.quality}"))
    return statements


def _count_marks(scene: Scene, colour: str | None) -> Statement:
    """The statement of how many marks there are, of one colour or in all."""
    kind = "" if colour is None else f" {colour}"
    forms = (f"Are there {{value}}{kind} marks?", f"Do you count {{value}}{kind} icons?")
    number = NUMBERS[scene.count(colour)]
    numbers = NUMBERS[1 : MOST_IN_ALL + 1] if colour is None else NUMBERS[: MOST_MARKS + 1]
    return Statement(colour or "count", forms, numbers, number, f"I count {number}{kind}")
