"""Exercises without a picture, by which the small base learns to look back into its text before it sees a picture.

To repeat words, and to say whether what was told is so, need attention from one word to its like. A small model that
first meets the like among pictures cannot repeat a word after 50,000 dialogues (measured); on text alone it learns both
within minutes. The frequent words come first; at the end all of them are equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from data_prep.mini.dialogues import TAGS, Turn
from data_prep.mini.scenes import COLOURS, ICONS, MATERIALS, PLACES, SHAPES
from data_prep.mini.statements import LOOSE_SIZES, with_article
from data_prep.mini.words import sample_words

MOST_WORDS = 10  # to be repeated

# What is told, what is asked, and the values of both.
_FACTS: tuple[tuple[str, str, Sequence[str]], ...] = (
    ("it is {value}.", "Is it {value}?", tuple(COLOURS)),
    ("it is {a}.", "Is it {a}?", SHAPES),
    ("it looks like {a}.", "Is this {a}?", ICONS),
    ("it sits in the {value} part.", "Is it at the {value}?", PLACES),
    ("it is made of {value}.", "Is it of {value}?", MATERIALS),
    ("it looks {value}.", "Is it {value}?", tuple(LOOSE_SIZES.values())),
)


def read_words(rng: Random, progress: float) -> tuple[str, str]:
    """Words to be repeated."""
    words = " ".join(sample_words(rng, rng.randint(1, MOST_WORDS), evenness=progress))
    return f"Say: {words}.", words


def read_fact(rng: Random, progress: float) -> tuple[str, str]:
    """Whether what is asked is what was told: half of the time it is."""
    told, asked, values = _sample_fact(rng, progress)
    true, other = rng.sample(values, 2)
    value = rng.choice((true, other))
    question = f"{_fill(told, true)} {_fill(asked, value)}"
    return f"{question} {rng.choice(TAGS)}", "yes" if value == true else "no"


def _sample_fact(rng: Random, progress: float) -> tuple[str, str, Sequence[str]]:
    """A kind of fact with its values; in three of ten the values are any words."""
    told, asked, values = rng.choice(_FACTS)
    if rng.random() < 0.3:
        return "it is {value}.", "Is it {value}?", tuple(dict.fromkeys(sample_words(rng, 8, evenness=progress)))
    return told, asked, values


def _fill(text: str, value: str) -> str:
    return text.format(value=value, a=with_article(value))


def read(rng: Random, progress: float) -> Turn:
    """One exercise. progress: the share of the exercises that came before, in [0, 1)."""
    exercise = rng.choice((read_words, read_fact))
    question, answer = exercise(rng, progress)
    return Turn(question, answer, exercise.__name__)
