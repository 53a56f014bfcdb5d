"""From the text that a model wrote to the answer that it means.

A parser takes the text and the question's choices and returns the answer in one canonical form, or None if the
text holds no such answer. The references of a question go through the same parser.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

Box = tuple[float, float, float, float]
Answer = str | Box

_REAL = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2}(?!\d))?"
_STANDING = re.compile(rf"(?<![\w.]){_REAL}")  # the 1 of "x1" is not a coordinate
_AMOUNT = re.compile(rf"(?<![\w.])(?:-?(?:\d+ )?\d+/\d+|{_REAL})")  # 3 1/2, 1/2 or a decimal
_BRACKETS = re.compile(r"[\[(<{]([^\[\](){}<>]*)[\])>}]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ANSWER_IS = re.compile(  # "the answer is a dog" names no letter, "the answer is b because" does
    r"\banswer(?: is)?:? ?(?:option |choice |letter )?[(\[]?([A-Z])(?=[)\].,:;]|$|(?<=[B-HJ-Z]) )",
    re.IGNORECASE,
)
_LETTER_ALONE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:,]?")
_LETTER_FIRST = re.compile(r"[(\[]?([A-Za-z])[)\].:](?:\s|$)")
_LETTER_WITHIN = re.compile(r"[(\[]([A-Z])[)\]]")
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTED)}


def parse_text(text: str, choices: Sequence[str] = ()) -> str | None:
    """The text itself, white space collapsed (U+2028 and its kind included)."""
    return " ".join(unicodedata.normalize("NFC", text).split()) or None


def parse_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of an option, in upper case.

    Tried in this order: a letter alone (`b`, `(B)`, `B.`); `the answer is B`; the text of exactly one choice; a
    letter first (`B. blue`) or in brackets, if that is one letter only. A letter beyond the choices is no answer.
    The article of `A dog` is not taken for the option A.
    """
    text = " ".join(text.split())
    allowed = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    found = _LETTER_ALONE.fullmatch(text) or _ANSWER_IS.search(text)
    if found:
        return found[1].upper() if found[1].upper() in allowed else None
    plain = text.rstrip(".").casefold()
    same = [letter for letter, choice in zip(allowed, choices, strict=False) if choice.strip().casefold() == plain]
    if len(same) == 1:
        return same[0]
    first = _LETTER_FIRST.match(text)
    marked = {*_LETTER_WITHIN.findall(text), *([first[1].upper()] if first else [])}
    return marked.pop() if len(marked) == 1 and marked <= set(allowed) else None


def parse_number(text: str, choices: Sequence[str] = ()) -> str | None:
    """The last number of the text as an exact fraction in lowest terms (`0.50`, `1/2` and `.5` are `1/2`).

    Thousands separators, currency and unit signs do not matter; `zero` to `ten` count as numbers.
    """
    text = _THOUSANDS.sub("", " ".join(text.casefold().split()))
    text = re.sub(r"[a-z]+", lambda match: NUMBER_WORDS.get(match[0], match[0]), text)
    found = _AMOUNT.findall(re.sub(r"(?<=\d) ?/ ?(?=\d)", "/", text))
    if not found:
        return None
    try:
        size = sum(Fraction(part) for part in found[-1].removeprefix("-").split())
    except (ValueError, ZeroDivisionError):
        return None
    return str(-size if found[-1].startswith("-") else size)


def parse_box(text: str, choices: Sequence[str] = ()) -> Box | None:
    """The box `x1, y1, x2, y2` of the first brackets that hold four numbers, else of a text with just four.

    Corners are put in order; the unit is whatever the references use. Published code: strips the brackets and
    then two more characters, the last digit of y2 among them.
    """
    for part in (*_BRACKETS.findall(text), text):
        numbers = [float(number) for number in _STANDING.findall(part)]
        if len(numbers) == 4 and all(math.isfinite(number) for number in numbers):
            x1, y1, x2, y2 = numbers
            return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    return None


Parser = Callable[[str, Sequence[str]], Answer | None]
PARSERS: dict[str, Parser] = {
    "box": parse_box,
    "letter": parse_letter,
    "number": parse_number,
    "text": parse_text,
}
