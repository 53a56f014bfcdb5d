"""Parsers of answers: they extract the answer from the text that a model wrote.

A parser takes the text and the question's choices and returns the answer in one canonical form, or None if the
text holds no such answer. The references of a question go through the same parser. Marks of any script are read as the
ASCII marks that they stand for; only `raw` and `label` take the text as it is.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from eval.punctuation import even_out_marks

Box = tuple[float, float, float, float]
Answer = str | Box

_REAL = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2}(?!\d))?"
_STANDING = re.compile(rf"(?<![\w.]){_REAL}")  # the 1 of "x1" is not a coordinate
_AMOUNT = re.compile(rf"(?<![\w.])(?:-?(?:\d+ )?\d+/\d+|{_REAL})")  # 3 1/2, 1/2 or a decimal
_BRACKETS = re.compile(r"[\[(<{]([^\[\](){}<>]*)[\])>}]")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_ANSWER_IS = re.compile(  # "the answer is a dog" names no letter, "the answer is b because" does
    r"\banswer(?: is)?:? ?(?:option |choice |letter )?[(\[]?([A-Z])"
    r"(?=[)\].:;]|,(?! ?(?-i:[A-HJ-Z])(?!\w))|$|(?<=[B-HJ-Z]) )",  # not of "the answer is A, B"
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"[*`\"]+|(?<!\w)_+|_+(?!\w)")
_LETTER_ALONE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:,]?")
_LETTER_SENTENCE = re.compile(  # the whole text: "it is option B", "option (b).", "B is the correct answer"
    r"(?:(?:it|this|that|(?:the|my) (?:correct |right |best )?(?:answer|option|choice|one)) is:? |it's |"
    r"i (?:choose|pick) )?(?:the )?(?:option |choice |letter )?[(\[]?([A-Z])[)\]]?"
    r"(?: is (?:the )?(?:correct|right|best)(?: answer| option| choice| one)?)?[.!]?",
    re.IGNORECASE,
)
_OTHER_LETTER = r"(?-i:.*(?<![\w'])(?:[A-HJ-Zb-hj-z](?![\w'])|a\W*$))"  # of "A, B"; not of "A, I see a dog"
_LETTER_FIRST = re.compile(  # not of a list of letters, "A. B. C."
    rf"(?:option |choice )?[(\[]?([A-Z])(?:[)\].:]|,(?!{_OTHER_LETTER}))(?:$|\s(?![(\[]?(?!\1)[A-Z][)\].:](?:\s|$)))",
    re.IGNORECASE,
)
_LETTER_WITHIN = re.compile(r"[(\[]([A-Z])[)\]]")
_YES_NO_FIRST = re.compile(r"\W*(yes|no)\s*[,.;:!]")
_MINUS = "\u2212"
_NEGATIVE = re.compile(r"(?:(?:^|(?<=[=:(])) ?- ?|\b(?:minus|negative) |(?<!\w)-(?=[$€£]))[$€£]? ?(?=[\d.])")
_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
# Words and signs beside digits that make them a part of another number: `two thirds`, `5 million`, `1,00`, `2^3`.
_LARGER = (
    r"(?:eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|"
    r"hundreds?|thousands?|[mbtr]+illions?|[km]?bn|mn|k|dozens?|half|halves|thirds?|fourths?|quarters?|fifths?|"
    r"sixths?|eighths?|ninths?|tenths?|hundredths?|thousandths?)(?![a-z])"
)
_CUT_BEFORE = re.compile(rf"(?:\d ?[,:/^]-?|\d |\d point |√ ?|(?<![a-z]){_LARGER}[ -](?:and )?)$")
_CUT_AFTER = re.compile(rf"\.\d|e[+-]?\d|[/^]|[⁰-⁹²³]|.*(?<![a-z]){_LARGER}")
_LONGEST = 300  # characters of a number: endlessly repeated digits are none
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STATED = re.compile(r".*\banswer(?: is:?|:) (.+?)(?:[.!;] .*|$)", re.IGNORECASE)  # the last one, to its sentence's end
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_TIME = re.compile(r"(?<!\d)(\d{1,2}):(\d\d)(?: ?([ap])\.? ?m\b)?")
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTED)}


def parse_text(text: str, choices: Sequence[str] = ()) -> str | None:
    """The text itself, its marks evened out, white space collapsed (U+2028 and its kind included)."""
    return " ".join(even_out_marks(text).split()) or None


def parse_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of an option, in upper case.

    Tried in this order: a letter alone (`b`, `(B)`, `**B**`); a sentence that only names one (`it is option B`,
    `B is correct`); `... the answer is B ...`; the text of exactly one choice; a letter first (`B. blue`, `B, blue`)
    or in brackets, if that is one letter only. A letter beyond the choices is no answer, nor are several letters, nor
    the list of the options. The article of `A dog` is not taken for the option A.
    """
    choices = [even_out_marks(choice) for choice in choices]
    written = " ".join(even_out_marks(text).split())
    text = _EMPHASIS.sub("", written).strip()
    allowed = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    whole = _LETTER_ALONE.fullmatch(text) or _LETTER_SENTENCE.fullmatch(text)
    stated = {letter.upper() for letter in ([whole[1]] if whole else _ANSWER_IS.findall(text))}
    if stated:
        return stated.pop() if len(stated) == 1 and stated <= set(allowed) else None
    plain = written.rstrip(".").casefold()
    same = [letter for letter, choice in zip(allowed, choices, strict=False) if choice.strip().casefold() == plain]
    if len(same) == 1:
        return same[0]
    first = _LETTER_FIRST.match(text)
    marked = {*_LETTER_WITHIN.findall(text), *([first[1].upper()] if first else [])}
    is_one = len(marked) == 1 and marked <= set(allowed) and _count_repeated(plain, choices) < 2
    return marked.pop() if is_one else None


def _count_repeated(text: str, choices: Sequence[str]) -> int:
    """How many options a lower-case text repeats in the question's own form: two in `a. red b. blue`."""
    options = zip(string.ascii_lowercase, choices, strict=False)
    marked = (rf"\b{letter}[)\].:,] {re.escape(choice.strip().casefold())}(?!\w)" for letter, choice in options)
    return sum(re.search(option, text) is not None for option in marked)


def parse_number(text: str, choices: Sequence[str] = ()) -> str | None:
    """The last number of the text as an exact fraction in lowest terms (`0.50`, `1/2` and `.5` are `1/2`).

    Thousands separators, currency and unit signs do not matter; `zero` to `ten` count as numbers. None where the
    last digits are a part of a number that is written otherwise: `twenty one`, `5 million`, `1,00`, `10^3`.
    """
    text = join_thousands(" ".join(even_out_marks(text).replace(_MINUS, "-").casefold().split()))
    text = _FRACTIONS.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text)
    text = re.sub(r"[a-z]+", lambda match: NUMBER_WORDS.get(match[0], match[0]), text)
    text = _NEGATIVE.sub(" -", re.sub(r"(?<=\d) ?/ ?(?=\d)", "/", text.strip()))
    *_, last = (None, *_AMOUNT.finditer(text))
    if last is None or len(last[0]) > _LONGEST:
        return None
    if _CUT_BEFORE.search(text[: last.start()]) or _CUT_AFTER.match(text, last.end()):
        return None
    try:
        size = sum(Fraction(part) for part in last[0].removeprefix("-").split())
    except (ValueError, ZeroDivisionError):
        return None
    return str(-size if last[0].startswith("-") else size)


def parse_table(text: str, choices: Sequence[str] = ()) -> str | None:
    """The answer to a question about a table (TabMWP), after the normaliser of PromptPG.

    With choices: the letter of the one that is meant, by its letter, its text, its number or, if that is one only, by
    most words in common. Without: a time of day, else the last number in thousandths (`$1,234.50`, `50%`, `5 cups`,
    `1/3` and `0.333`: what stands around the number is its unit), else the text. What `the answer is` is read first.
    Source: https://github.com/lupantech/PromptPG. Published code: compares upper case only; PromptPG guesses a choice
    where none is meant.
    """
    text, choices = even_out_marks(text), [even_out_marks(choice) for choice in choices]
    plain = _EMPHASIS.sub("", _LATEX_FRACTION.sub(r"\1/\2", " ".join(text.split()))).strip()
    stated = _STATED.fullmatch(plain)
    answer = stated[1] if stated and _fold(stated[1]) else plain
    if not answer:
        return parse_text(text)
    return _find_choice(answer, choices) if choices else _read_amount(answer) or _fold(answer) or answer


def _find_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that a text names, by text before letter: with the choices `B` and `A`, `A` is B."""
    letters = dict(zip(string.ascii_uppercase, choices, strict=False))
    text, amount = _fold(answer), _read_amount(answer)
    same = [letter for letter, choice in letters.items() if text and _fold(choice) == text]
    letter = same[0] if len(same) == 1 else parse_letter(answer, choices)
    if letter is None and amount is not None:
        same = [letter for letter, choice in letters.items() if _read_amount(choice) == amount]
        letter = same[0] if len(same) == 1 else None
    return letter or _find_most_alike(answer, letters)


def _find_most_alike(answer: str, letters: Mapping[str, str]) -> str | None:
    """The letter of the choice that shares the most words with the text; None if none does, or several tie."""
    words = set(_fold(answer).split())
    by_letter = {letter: set(_fold(choice).split()) for letter, choice in letters.items()}
    alike = {letter: len(choice & words) / max(len(choice), len(words), 1) for letter, choice in by_letter.items()}
    best = [letter for letter, share in alike.items() if share == max(alike.values()) > 0]
    return best[0] if len(best) == 1 else None


def _fold(text: str) -> str:
    """The words of a text without case and punctuation (`p.m.` is `pm`)."""
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"['.](?!\d)", "", text.casefold())))


def _read_amount(text: str) -> str | None:
    """A time of day as `7:25 p`, else the last number, rounded to thousandths (`1/3` is `333/1000`)."""
    text = text.casefold()
    *_, time = (None, *_TIME.finditer(text))
    if time is not None and not re.search(r"\d", text[time.end() :]):
        return " ".join(part for part in (f"{int(time[1])}:{time[2]}", time[3]) if part)
    number = parse_number(text)
    return None if number is None else str(Fraction(round(Fraction(number) * 1000), 1000))


def parse_yes_no(text: str, choices: Sequence[str] = ()) -> str | None:
    """`yes` or `no`: the only one of both that the text holds, or that it begins with (`Yes, there is no doubt`)."""
    text = even_out_marks(text).casefold()
    first = _YES_NO_FIRST.match(text)
    said = {first[1]} if first else {"yes", "no"}.intersection(re.findall(r"[^\W_]+", text))
    return said.pop() if len(said) == 1 else None


def parse_raw(text: str, choices: Sequence[str] = ()) -> str:
    """The text as it is, for the published scorers, which read it themselves."""
    return text


def join_thousands(text: str) -> str:
    """`1,234,567` -> `1234567`; `1,23` and `0,123` are no thousands."""
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def parse_box(text: str, choices: Sequence[str] = ()) -> Box | None:
    """The box `x1, y1, x2, y2` of the first brackets that hold four numbers, else of a text with just four.

    Corners are put in order; the unit is whatever the references use. Published code: strips the brackets and
    then two more characters, the last digit of y2 among them.
    """
    text = even_out_marks(text)
    for part in (*_BRACKETS.findall(text), text):
        numbers = [float(number) for number in _STANDING.findall(part)]
        if len(numbers) == 4 and all(math.isfinite(number) for number in numbers):
            x1, y1, x2, y2 = numbers
            return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    return None


Parser = Callable[[str, Sequence[str]], Answer | None]


def parse_label(text: str, choices: Sequence[str] = ()) -> str | None:
    """The class that a classifier named first; those on the lines after it are less likely."""
    return text.partition("\n")[0].strip() or None


PARSERS: dict[str, Parser] = {
    "box": parse_box,
    "label": parse_label,
    "letter": parse_letter,
    "number": parse_number,
    "raw": parse_raw,
    "table": parse_table,
    "text": parse_text,
    "yes_no": parse_yes_no,
}
