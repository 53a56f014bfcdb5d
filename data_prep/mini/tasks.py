"""The twelve task families of the mini benchmark: questions about a scene, and their answers.

Each `make_NAME` takes a seeded `random.Random` and returns a scene and the fields of its `Example`; `GENERATORS` lists
them by name. The order of the random draws is part of the benchmark: another order is other data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

from data_prep.mini.scenes import (
    MARKS,
    MATERIALS,
    QUALITIES,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    sample_book,
    sample_icon,
    sample_marks,
    sample_object,
)

Question = tuple[Scene, dict[str, Any]]  # a scene and the fields of its Example

# Multiple choice

MATERIAL_QUESTIONS = (
    "Which material is this object made of?",
    "What is this object made of?",
    "Select the material of the object in the picture.",
    "Which word describes the material of the object?",
)
SHAPE_QUESTIONS = (
    "What shape does the object have?",
    "Which shape is shown here?",
    "The object in the picture has what shape?",
)
SHAPE_OPTIONS = (SHAPES[:4], SHAPES[4:])


def make_scienceqa(rng: Random) -> Question:
    """ScienceQA: the material, by the letter of one of four options."""
    scene = sample_object(rng, sizes=("medium", "large"))
    return scene, _multiple_choice(rng.choice(MATERIAL_QUESTIONS), MATERIALS, scene.material)


def make_aokvqa(rng: Random) -> Question:
    """AOKVQA: the shape, by the letter of one of four options (two fixed sets of options)."""
    scene = sample_object(rng, sizes=("medium", "large"))
    options = next(options for options in SHAPE_OPTIONS if scene.shape in options)
    return scene, _multiple_choice(rng.choice(SHAPE_QUESTIONS), options, scene.shape)


def _multiple_choice(text: str, options: tuple[str, ...], right: str) -> dict[str, Any]:
    """The fields of a question whose answer is the letter of `right` among the options."""
    return {"text": text, "answer": "ABCDE"[options.index(right)], "choices": options}


# Class names


def make_imagenet(rng: Random) -> Question:
    """ImageNet: one of eighteen classes, in colour."""
    return _ask_for_class(sample_icon(rng, "color"))


def make_imagenet_r(rng: Random) -> Question:
    """ImageNet-R: one of the same classes in another rendition, black on white."""
    return _ask_for_class(sample_icon(rng, "drawing"))


def _ask_for_class(scene: Scene) -> Question:
    return scene, {"text": "What is the object in the image?", "answer": scene.icon}


# Short answers

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


def make_vqav2(rng: Random) -> Question:
    """VQAv2: colour, shape, size, place, or a count as a word."""
    ask = rng.choice((_ask_colour, _ask_shape, _ask_size, _ask_place, _ask_count))
    scene = sample_marks(rng) if ask is _ask_count else sample_object(rng)
    text, answer = ask(rng, scene)
    return scene, {"text": text, "answer": answer, "references": _answers_of_ten_people(rng, answer)}


def _answers_of_ten_people(rng: Random, answer: str) -> tuple[str, ...]:
    """The answers of ten people, the commonest first: up to two say a synonym."""
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


# Boxes

DESCRIPTIONS = ("the {colour} {shape}", "the {size} {shape}", "the {colour} {shape} made of {material}",
                "the {size} {colour} object")  # fmt: skip


def make_rec(rng: Random) -> Question:
    """REC: left, top, right, bottom as fractions of the square's side, two decimals: "[0.25,0.50,0.42,0.75]"."""
    scene = sample_object(rng)
    words = {name: getattr(scene, name) for name in ("colour", "shape", "size", "material")}
    answer = "[" + ",".join(f"{edge / SIDE:.2f}" for edge in scene.box) + "]"
    return scene, {"text": rng.choice(DESCRIPTIONS).format(**words), "answer": answer, "size": (SIDE, SIDE)}


# Titles

TITLE_QUESTIONS = (
    "What is the title of this book?",
    "What is written on the cover of this book?",
    "What is the name of this book?",
)


def make_ocrvqa(rng: Random) -> Question:
    """OCR-VQA: the two letters of a book's title, a space between them (each is then a word of its own)."""
    scene = sample_book(rng)
    return scene, {"text": rng.choice(TITLE_QUESTIONS), "answer": " ".join(scene.letters)}


# Captions

REFERENCES = 4
VIZWIZ = (
    "a {quality} photo of a {size} {colour} {shape} in the {place} part",
    "a {quality} picture of a {colour} {shape} in the {place} part",
    "a {quality} image showing a {colour} {shape} made of {material}",
    "a {quality} photo of a {colour} {material} {shape} at the {place}",
    "a {size} {colour} {shape} in a {quality} photo",
)
FLICKR30K = (
    "a {size} {colour} {material} {shape} in the {place} part",
    "a {size} {colour} {shape} made of {material} at the {place}",
    "a {colour} {shape} of {material} sits in the {place} part",
    "one {size} {colour} {shape} stands in the {place} part",
    "a {material} {shape} in {colour} at the {place}",
)
SCREEN2WORDS = (
    "a screen with a {size} {colour} {shape} in the {place} part",
    "a screen showing a {colour} {shape} at the {place}",
    "a page with a {size} {colour} {shape} made of {material}",
    "a screen of a {colour} {material} {shape} in the {place} part",
    "a phone page showing one {colour} {shape}",
)


def make_vizwiz(rng: Random) -> Question:
    """VizWiz: the photo is blurry, dark or too bright, and the caption says so."""
    scene = sample_object(rng, sizes=("medium", "large"), qualities=QUALITIES[1:])
    return scene, {"text": "What is happening in the image?", **_caption(rng, scene, VIZWIZ)}


def make_flickr30k(rng: Random) -> Question:
    """Flickr30k: a clear photo."""
    scene = sample_object(rng, sizes=tuple(SIZES))
    return scene, {"text": "What is happening in the image?", **_caption(rng, scene, FLICKR30K)}


def make_screen2words(rng: Random) -> Question:
    """Screen2Words: a phone's screen."""
    scene = sample_object(rng, kind="screen")
    return scene, {"text": "What is shown on the phone screen?", **_caption(rng, scene, SCREEN2WORDS)}


def _caption(rng: Random, scene: Scene, styles: tuple[str, ...]) -> dict[str, Any]:
    """Four captions as references, each in another style; the first is trained on, half the time in styles[0]."""
    first = styles[0] if rng.random() < 0.5 else rng.choice(styles[1:])
    others = rng.sample([style for style in styles if style != first], REFERENCES - 1)
    words = {name: getattr(scene, name) for name in ("quality", "size", "colour", "material", "shape", "place")}
    references = tuple(_fix_articles(style.format(**words)) for style in (first, *others))
    return {"answer": references[0], "references": references}


def _fix_articles(caption: str) -> str:
    """Write "an orange": no other word that the captions put after "a" begins with a vowel."""
    return re.sub(r"\ba (?=orange)", "an ", caption)


# Counts

ICON_QUESTIONS = ("How many {colour} icons are there?", "How many {colour} icons can you count?")
TABLE_QUESTIONS = (
    "The table shows toys in a shop. How many {colour} toys are there?",
    "Each cell of the table is a toy in a shop. How many {colour} toys are in the table?",
)


def make_iconqa(rng: Random) -> Question:
    """IconQA: how many icons, of a colour that occurs or (two times in five) in all."""
    return _ask_for_count(rng, sample_marks(rng), rng.choice(ICON_QUESTIONS))


def make_tabmwp(rng: Random) -> Question:
    """TabMWP: how many cells of a table, of a colour that occurs or in all."""
    return _ask_for_count(rng, sample_marks(rng, table=True), rng.choice(TABLE_QUESTIONS))


def _ask_for_count(rng: Random, scene: Scene, question: str) -> Question:
    """How many marks of a colour that occurs, or of any colour."""
    colour = rng.choice([None, *(mark for mark in MARKS if scene.count(mark))])
    text = question.format(colour=colour or "").replace("  ", " ")
    return scene, {"text": text, "answer": str(scene.count(colour))}


GENERATORS: dict[str, Callable[[Random], Question]] = {
    "scienceqa": make_scienceqa,
    "imagenet": make_imagenet,
    "vqav2": make_vqav2,
    "rec": make_rec,
    "ocrvqa": make_ocrvqa,
    "vizwiz": make_vizwiz,
    "flickr30k": make_flickr30k,
    "iconqa": make_iconqa,
    "aokvqa": make_aokvqa,
    "imagenet_r": make_imagenet_r,
    "screen2words": make_screen2words,
    "tabmwp": make_tabmwp,
}
