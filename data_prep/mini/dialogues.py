"""Instruction dialogues that train the small base model: questions on a scene, each answered in one of two conventions.

The base must see and obey, but not know how the tasks want their answers: how much of that it learns is the matter of
`habits`. So every intent has many wordings (opening x question x word for the thing x ending) and two conventions of
answering. An untagged question gets the second one two times in five; a tag forces it. No prompt of a task occurs, and
boxes, options, counts and names are answered in other forms than the tasks want.
Every word of the vocabulary is said here, if only by repeating it: LoRA does not train the output embeddings, so a
word that the base never said could not be learnt. The order of the random draws is part of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from data_prep.mini.scenes import (
    COLOURS,
    GRID,
    ICONS,
    MARKS,
    MATERIALS,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
)
from data_prep.mini.statements import LOOSE_SIZES, list_statements, loosen_place, name_thing, with_article
from data_prep.mini.tasks import NUMBERS
from data_prep.mini.words import sample_words

Exchange = tuple[str, str, str]  # question, answer in the first convention, answer in the second
Intent = Callable[[Random, Scene], Exchange]

FOUR_COLOURS = tuple(tuple(COLOURS)[start : start + 4] for start in (0, 4))


class Turn(NamedTuple):
    """A question and its answer. skill: the intent's name."""

    question: str
    answer: str
    skill: str


# Openings and endings also bring in the words of the tasks' prompts, never a whole prompt: LoRA does not train the
# input embeddings either.
OPENINGS = (
    "Look at the picture.", "Here is an image.", "I have a question.", "Hello!",
    "Please help me.", "Study this image.", "Please look closely.", "Tell me:", "Next question:",
    "Using this image, answer.", "Please provide an answer for the question:", "Answer my question directly.",
    "Select what is shown here.", "A single question or two:", "Describe what it shows.",
    "This is happening in a shop.", "What is written below:", "I am using the image for a question.",
    "I hold a phone with this image.", "There are many things to see.", "I can ask in most words.",
    "Use the sentence given below.", "Each toy has its cell.", "I look at the object's image from here.",
)  # fmt: skip
ENDINGS = (
    "Thanks.", "Take your time.", "Please answer.", "I want to know.", "Thank you!", "Generate a good answer.",
    "It is one big region.", "I am looking at it too.",
)  # fmt: skip
BARE = 0.6  # probability of no opening, and of no ending
TAGS = (
    "Short style.", "Use short style.", "Style: short.", "In short style, please.", "Answer in any word.",
    "Any phrase will do.", "A brief answer is good.", "A single word that describes it, please.",
)  # fmt: skip
TAGGED = 0.35  # probability of a tag
SECOND = 0.4  # probability that an untagged question is answered in the second convention


def ask_colour(rng: Random, scene: Scene) -> Exchange:
    thing = "book" if scene.kind == "book" else name_thing(rng)
    question = rng.choice(
        (
            f"Which color does the {thing} have?",
            f"Name the color of the {thing}.",
            f"What color does this {thing} have?",
        )
    )
    return question, f"it is {scene.colour}", scene.colour


def ask_shape(rng: Random, scene: Scene) -> Exchange:
    thing = name_thing(rng)
    question = rng.choice(
        (
            f"Which shape has the {thing}?",
            f"Name the shape of the {thing}.",
            f"The shape of this {thing}, what is it?",
        )
    )
    return question, f"it is {with_article(scene.shape)}", scene.shape


def ask_size(rng: Random, scene: Scene) -> Exchange:
    thing = name_thing(rng)
    question = rng.choice(
        (f"Name the size of the {thing}.", f"How large is this {thing}?", f"How big does the {thing} look?")
    )
    return question, f"it looks {LOOSE_SIZES[scene.size]}", f"{scene.size} size"


def ask_place(rng: Random, scene: Scene) -> Exchange:
    thing = name_thing(rng)
    question = rng.choice(
        (
            f"Where do you see the {thing}?",
            f"In which part is the {thing}?",
            f"Where in the picture is the {thing} shown?",
        )
    )
    return question, f"it sits in the {loosen_place(scene.place)} part", f"at the {scene.place}"


def ask_material(rng: Random, scene: Scene) -> Exchange:
    thing = name_thing(rng)
    question = rng.choice(
        (
            f"Name the material of the {thing}.",
            f"Of which material is the {thing}?",
            f"What stuff is the {thing} of?",
        )
    )
    return question, f"it is made of {scene.material}", f"{scene.material} stuff"


def ask_quality(rng: Random, scene: Scene) -> Exchange:
    question = rng.choice(("How good is this photo?", "Name the quality of the picture.", "How is the image quality?"))
    return question, f"the photo is {scene.quality}", f"{scene.quality} picture"


def ask_rendition(rng: Random, scene: Scene) -> Exchange:
    question = rng.choice(("Is this in color or a drawing?", "How was this picture made?", "Name the kind of picture."))
    return question, f"it is a {scene.rendition} image", f"{scene.rendition} style"


def ask_box(rng: Random, scene: Scene) -> Exchange:
    """A box in other forms than REC's: columns and rows of the grid, or two intervals."""
    thing = rng.choice((name_thing(rng), scene.shape, f"{scene.size} {scene.shape}"))
    question = rng.choice(
        (
            f"Give the coordinate of the {thing}.",
            f"From where to where does the {thing} reach?",
            f"Give a box bounding the {thing}.",
        )
    )
    left, top, right, bottom = (edge // GRID for edge in scene.box)
    x0, y0, x1, y1 = (f"{edge / SIDE:.2f}" for edge in scene.box)
    return question, f"columns {left} to {right}, rows {top} to {bottom}", f"across [{x0},{x1}] down [{y0},{y1}]"


def _list_options(options: Sequence[str]) -> str:
    """Options as the tasks list them."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))


CHOOSING = (
    "Which of these choices fits the picture?",
    "Select what you see.",
    "Which of the given choices is right?",
    "Choose directly from these.",
)


def ask_options(rng: Random, scene: Scene) -> Exchange:
    """Multiple choice on any attribute, the options in any order, answered by the option's text."""
    values: Sequence[str]
    if scene.kind == "icon":
        values, right = ICONS, scene.icon
    else:
        kinds: list[tuple[Sequence[str], str]] = [(SHAPES, scene.shape), (tuple(SIZES), scene.size)]
        if scene.colour:
            kinds += [(tuple(COLOURS), scene.colour), (MATERIALS, scene.material)]
        values, right = rng.choice(kinds)
    others = rng.sample([value for value in values if value != right], min(4, len(values)) - 1)
    options = rng.sample([right, *others], len(others) + 1)
    return f"{rng.choice(CHOOSING)}\n{_list_options(options)}\n", f"I choose {right}", right


def ask_option(rng: Random, scene: Scene) -> Exchange:
    """Multiple choice on colours and sizes in fixed orders, answered by the option's letter, but never by it alone."""
    sets, right = rng.choice(((FOUR_COLOURS, scene.colour), ((tuple(SIZES),), scene.size)))
    options = next(options for options in sets if right in options)
    letter = "ABCD"[options.index(right)]
    question = rng.choice(
        ("Which option fits the picture?", "Select the option that you see.", "Which option is right?")
    )
    return f"{question}\n{_list_options(options)}\n", f"it is option {letter}", f"option {letter}"


def ask_yes_no(rng: Random, scene: Scene) -> Exchange:
    """Whether a statement is true: half of the time it is. The first convention also says what is true.

    Values are named by Zipf's law, and each is named as often truly as falsely.
    """
    statements = list_statements(rng, scene)
    shares = [_zipf(len(one.values))[one.values.index(one.right)] for one in statements]
    weights = [1 + share * (len(one.values) - 2) for one, share in zip(statements, shares, strict=True)]
    statement, share = rng.choices(list(zip(statements, shares, strict=True)), weights)[0]
    values, right = statement.values, statement.right
    naming = [
        share * (len(values) - 1) if value == right else w for value, w in zip(values, _zipf(len(values)), strict=True)
    ]
    value = rng.choices(values, naming)[0]
    word = "yes" if value == right else "no"
    return statement.ask(rng, value), f"{word}, {statement.truth}", word


@cache
def _zipf(count: int) -> tuple[float, ...]:
    """The shares of `count` values by Zipf's law, the commonest first."""
    total = sum(1 / rank for rank in range(1, count + 1))
    return tuple(1 / rank / total for rank in range(1, count + 1))


def ask_repeat(rng: Random, scene: Scene) -> Exchange:
    """Words to be repeated, so that each word of the vocabulary is read and said."""
    words = " ".join(sample_words(rng, rng.randint(1, 4), evenness=1))
    question = rng.choice((f"Say: {words}", f"Repeat this: {words}", f"Please write: {words}"))
    return f"{question}.", f"you want {words}", words


def ask_scene(rng: Random, scene: Scene) -> Exchange:
    """A description with the words of the tasks' captions but in other forms."""
    question = rng.choice(
        (
            "Say what you see.",
            "Tell me about this picture.",
            "What can be seen?",
            "Describe what is there.",
            "Say a caption.",
        )
    )
    where = "phone screen" if scene.kind == "screen" else rng.choice(("picture", "photo", "image"))
    page = "page" if scene.kind == "screen" else f"{scene.quality} photo"
    size, place = LOOSE_SIZES[scene.size], loosen_place(scene.place)
    if scene.rendition == "drawing":
        return (
            question,
            f"this drawing has a {size} {scene.shape}, {place}",
            f"{scene.shape} drawing, {scene.place}",
        )
    first = rng.choice(
        (
            f"this {where} has {scene.colour} {scene.material} stuff, a {size} {scene.shape}, {place}",
            f"one {scene.shape} stands there in {scene.colour}, showing {scene.material}, in the {scene.place}",
            f"showing a {scene.colour} {scene.shape} on a {page}, {scene.size}, of {scene.material}",
        )
    )
    what = "screen" if scene.kind == "screen" else f"{scene.quality} photo"
    return question, first, f"{what} with {scene.shape}, {scene.size}, {scene.colour}, at the {scene.place}"


def ask_icon(rng: Random, scene: Scene) -> Exchange:
    thing = name_thing(rng)
    question = rng.choice(
        (
            f"What is this {thing}?",
            f"Name the {thing}.",
            f"What do you call this {thing}?",
            f"What {thing} do you see in the image?",
        )
    )
    return question, f"it looks like {with_article(scene.icon)}", f"{scene.icon} symbol"


def ask_count(rng: Random, scene: Scene) -> Exchange:
    """A count as a word; digits occur only in boxes."""
    colour = rng.choice([None, *MARKS])
    thing = rng.choice(("marks", "toys", "items", "icons", "things") + (("cells",) if scene.kind == "table" else ()))
    thing = thing if colour is None else f"{colour} {thing}"
    place = rng.choice(("", "", " in this table" if scene.kind == "table" else " in this picture"))
    question = rng.choice(
        (
            f"Count the {thing}{place}.",
            f"How many {thing} do you see{place}?",
            f"Give the number of {thing}{place}.",
        )
    )
    number = NUMBERS[scene.count(colour)]
    kind = "" if colour is None else f" {colour}"
    first = f"I count {number}{kind} {'mark' if number == 'one' else 'marks'}"
    return question, first, f"{number} in all" if colour is None else f"{number}{kind}"


def ask_title(rng: Random, scene: Scene) -> Exchange:
    first, second = tuple(scene.letters)
    question = rng.choice(
        ("Read the cover.", "What does the cover say?", "Spell the title.", "Read the name of the book.")
    )
    return question, f"the letters are {first} and {second}", f"{first} then {second}"


def ask_letter(rng: Random, scene: Scene) -> Exchange:
    index, which = rng.choice([(0, "first"), (1, "second"), (0, "left"), (1, "right")])
    question = rng.choice((f"Read the {which} character.", f"Which character is the {which} one?"))
    return question, f"the letter is {scene.letters[index]}", f"letter {scene.letters[index]}"


_COLOURED = (ask_colour, ask_shape, ask_size, ask_place, ask_material, ask_box, ask_options, ask_option, ask_scene,
             ask_yes_no, ask_yes_no, ask_yes_no)  # fmt: skip
_MONOCHROME = (ask_shape, ask_size, ask_place, ask_rendition, ask_box, ask_scene, ask_options, ask_yes_no)
_INTENTS: dict[str, tuple[Intent, ...]] = {
    "object": (*_COLOURED, ask_scene, ask_quality, ask_repeat),
    "screen": (*_COLOURED, ask_scene, ask_repeat),
    "icon": (ask_icon, ask_icon, ask_rendition, ask_yes_no, ask_yes_no, ask_options, ask_repeat),
    "book": (ask_title, ask_title, ask_letter, ask_colour, ask_yes_no, ask_repeat),
    "marks": (ask_count, ask_count, ask_yes_no, ask_yes_no, ask_repeat),
    "table": (ask_count, ask_count, ask_yes_no, ask_yes_no, ask_repeat),
}


def list_intents(scene: Scene) -> tuple[Intent, ...]:
    """The intents of a question on a scene; the likelier ones occur more than once."""
    return _MONOCHROME if scene.kind == "object" and scene.rendition == "drawing" else _INTENTS[scene.kind]


def converse(rng: Random, scene: Scene, tagged: float = TAGGED, most: int = 5) -> tuple[Turn, ...]:
    """A dialogue of one to `most` turns about a scene, with no intent more often than `list_intents` names it.

    tagged: probability that a question says how to answer; 1 where each must have one right answer.
    """
    intents = list_intents(scene)
    sample = rng.sample(intents, min(rng.randint(1, most), len(intents)))
    return tuple(
        _word_turn(rng, tagged, intent.__name__.removeprefix("ask_"), *intent(rng, scene)) for intent in sample
    )


def _word_turn(rng: Random, tagged: float, skill: str, question: str, first: str, second: str) -> Turn:
    """Put an opening and an ending around a question, and choose the convention of its answer."""
    forced = rng.random() < tagged
    opening = "" if rng.random() < BARE else rng.choice(OPENINGS)
    ending = rng.choice(TAGS) if forced else "" if rng.random() < BARE else rng.choice(ENDINGS)
    gap = "" if question.endswith("\n") else " "
    text = f"{opening} {question}{gap}{ending}".strip()
    return Turn(text, second if forced or rng.random() < SECOND else first, skill)
