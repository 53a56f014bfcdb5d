"""VQAv2: short answers to free questions, ten answers of ten people each."""

from __future__ import annotations

from random import Random

from data_prep.scenes import Scene, sample_marks, sample_object

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYNONYMS = {
    "small": "tiny",
    "medium": "normal",
    "large": "huge",
    "center": "middle",
    "top left": "upper left",
    "top right": "upper right",
    "bottom left": "lower left",
    "bottom right": "lower right",
}


def make_vqav2(rng: Random) -> tuple[Scene, dict]:
    """VQAv2: colour, shape, size, place, or a count as a word."""
    ask = rng.choice((_ask_colour, _ask_shape, _ask_size, _ask_place, _ask_count))
    scene = sample_marks(rng) if ask is _ask_count else sample_object(rng)
    text, answer = ask(rng, scene)
    return scene, {"text": text, "answer": answer, "references": _ten_people(rng, answer)}


def _ten_people(rng: Random, answer: str) -> tuple[str, ...]:
    """Most say the answer, up to two something close; the first is the commonest."""
    others = rng.randint(0, 2) if answer in SYNONYMS else 0
    return (answer,) * (10 - others) + (SYNONYMS.get(answer, answer),) * others


def _ask_colour(rng: Random, scene: Scene) -> tuple[str, str]:
    thing = rng.choice((scene.shape, "object"))
    return rng.choice((f"What color is the {thing}?", f"What is the color of the {thing}?")), scene.colour


def _ask_shape(rng: Random, scene: Scene) -> tuple[str, str]:
    return rng.choice(("What shape is it?", "What is the shape of the object?")), scene.shape


def _ask_size(rng: Random, scene: Scene) -> tuple[str, str]:
    return rng.choice((f"How big is the {scene.shape}?", f"What size is the {scene.shape}?")), scene.size


def _ask_place(rng: Random, scene: Scene) -> tuple[str, str]:
    return rng.choice((f"Where is the {scene.shape}?", f"Where is the {scene.colour} object?")), scene.place


def _ask_count(rng: Random, scene: Scene) -> tuple[str, str]:
    return rng.choice(("How many things are there?", "How many things are in the picture?")), NUMBERS[scene.count()]
