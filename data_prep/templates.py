"""The wordings in which the paper's benchmark asks (its table 8), shared by the converters of the releases."""

from __future__ import annotations

import string
from collections.abc import Sequence

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "What is happening in the image?\nGenerate a brief caption for the image."


def phrase(question: str, *below: str, above: str = "") -> str:
    """A question with lines above and below it; "" for an empty one, so that it is refused instead of half asked."""
    return "\n".join(filter(None, (above, question, *below))) if question.strip() else ""


def find_letter(number: int, choices: Sequence[str]) -> str:
    """The letter of an option, numbered from 0; "" where there is no such option, so that the question is refused."""
    return dict(zip(range(len(choices)), string.ascii_uppercase, strict=False)).get(number, "")


def list_options(choices: Sequence[str]) -> str:
    """The options as lines `A. red`."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
