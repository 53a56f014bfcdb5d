"""Punctuation of every script, evened out to the ASCII marks that it stands for: how it is typed does not matter.

What is no punctuation stays: letters of any script with their accents, digits, currency, units and the minus sign.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_TYPED = {"<wide>", "<small>"}  # variants of ASCII signs, letters and digits that count as the same
_BESIDE_MARKS = {  # to Unicode accents and letters: ´ ʹ ʻ ʼ ʽ ᾽, and ʺ ˮ
    **dict.fromkeys("\u00b4\u02b9\u02bb\u02bc\u02bd\u1fbd", "'"),
    **dict.fromkeys("\u02ba\u02ee", '"'),
}
# What the name of a mark holds, and what it stands for; the first that fits.
_BY_NAME = tuple(
    (re.compile(rf"\b(?:{words})\b"), mark)
    for words, mark in (
        ("(?:LEFT|RIGHT) SINGLE QUOTATION MARK|SINGLE HIGH-REVERSED-9|APOSTROPHE|GERESH", "'"),
        ("QUOTATION MARK|DOUBLE PRIME|GERSHAYIM|CORNER BRACKET", '"'),
        ("PRIME", "'"),
        ("QUESTION MARK", "?"),
        ("EXCLAMATION MARK", "!"),
        ("SEMICOLON", ";"),
        ("COLON", ":"),
        ("COMMA|THOUSANDS SEPARATOR", ","),
        ("FULL STOP|DANDA|DECIMAL SEPARATOR", "."),
        ("PERCENT SIGN", "%"),
    )
)
_BRACKETS = {"SQUARE BRACKET": ("[", "]"), "CURLY BRACKET": ("{", "}"), "ANGLE BRACKET": ("<", ">")}
_UNIT = re.compile(r"\bPER (?:MILLE|TEN THOUSAND)\b")
_compose = functools.partial(unicodedata.normalize, "NFC")


def even_out_marks(text: str) -> str:
    """The text with ASCII marks for all that stand for one: `（B）。` is `(B).`, `l’été – „1…“` is `l'été - "1..."`.

    Invisible characters of format (soft hyphens, zero-width spaces) go, and every space is a plain one. A mark that
    ASCII has nothing for (`·`, `§`) stays; see `separate_other_marks`. Canonically composed (NFC).
    """
    if text.isascii():
        return text
    return _compose(_BEYOND_ASCII.sub(lambda found: _find_ascii(found[0]), _compose(text)))


def separate_other_marks(text: str) -> str:
    """The text with `;`, which only separates, for each mark that `even_out_marks` leaves."""
    return _BEYOND_ASCII.sub(lambda found: ";" if _is_mark(found[0]) else found[0], text)


@functools.cache
def _is_mark(sign: str) -> bool:
    """Whether a character is punctuation; the per mille sign and its kin are units."""
    return unicodedata.category(sign)[0] == "P" and not _UNIT.search(unicodedata.name(sign))


@functools.cache
def _find_ascii(sign: str) -> str:
    """What one character beyond ASCII stands for; itself where it is no mark, or one that ASCII has nothing for."""
    category, name, plain = unicodedata.category(sign), unicodedata.name(sign, ""), unicodedata.normalize("NFKC", sign)
    if category == "Cf":
        return ""
    if category[0] == "Z":
        return " "
    if sign in _BESIDE_MARKS:
        return _BESIDE_MARKS[sign]
    if plain.isascii() and (_is_mark(sign) or unicodedata.decomposition(sign).split()[0] in _TYPED):
        return plain
    return (_find_by_name(name) or _find_by_category(category, name) or sign) if _is_mark(sign) else sign


def _find_by_name(name: str) -> str | None:
    return next((mark for words, mark in _BY_NAME if words.search(name)), None)


def _find_by_category(category: str, name: str) -> str | None:
    """A hyphen, a low line, or the brackets of the kind that the name says, round ones where it says none."""
    first, last = next((pair for kind, pair in _BRACKETS.items() if kind in name), ("(", ")"))
    return {"Pd": "-", "Pc": "_", "Ps": first, "Pi": first, "Pe": last, "Pf": last}.get(category)
