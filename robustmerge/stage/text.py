"""Text from outside (names, values, answers), made fit for a terminal, a log or a message."""

from __future__ import annotations

import re
import unicodedata

LINE = 900  # bytes of a line of a message; the middle of a longer one is left out
MESSAGE = 1900  # bytes of a whole message; lines in the middle of a longer one are left out
# Control characters (a terminal obeys them) but not the line's end and the tab; those that turn the reading direction;
# halves of surrogate pairs, which no file and no terminal can encode.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories of characters that show nothing
_EMPTY = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # and letters that show nothing


def is_blank(text: str) -> bool:
    r"""Whether a text shows nothing: no character at all, spaces, or characters without width.

    >>> is_blank(" \u200b\ufeff"), is_blank(" 0")
    (True, False)
    """
    return not text.strip() or all(unicodedata.category(one) in _INVISIBLE or one in _EMPTY for one in text)


def plain(text: str) -> str:
    r"""Replace what a terminal would obey instead of showing by its escape.

    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNFIT.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Bring a text to one line, fit for a cell, a heading or a label.

    >>> one_line(" a\r\n\x1b[2J\tb ")
    'a \\x1b[2J b'
    """
    return plain(" ".join(text.split()))


def shorten(text: str, most: int = 80) -> str:
    """Leave out the middle of a text of more than `most` characters.

    >>> shorten("0123456789" * 3, 10)
    '012345…789'
    """
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - 1 - tail]}…{text[-tail:]}"


def quote(value: object, most: int = 80) -> str:
    """The value of a field of a foreign file, for a message: as Python writes it, on one line, shortened."""
    return shorten(plain(repr(value)), most)


def _shorten_to_bytes(line: str) -> str:
    most = LINE
    while len((short := shorten(line, most)).encode()) > LINE:
        most = most * 9 // 10
    return short


def format_message(text: str) -> str:
    """A message that can be printed anywhere: plain, with lines of at most LINE bytes, and MESSAGE bytes in all.

    Its first and last lines are kept: what is wrong, and what to do.
    """
    lines = [_shorten_to_bytes(line) for line in plain(text).split("\n")]
    sizes = [len(line.encode()) + 1 for line in lines]
    if sum(sizes) <= MESSAGE:
        return "\n".join(lines)
    head, tail, room = 1, 1, MESSAGE - 60 - sizes[0] - sizes[-1]
    while head + tail < len(lines):
        takes_head = sum(sizes[:head]) <= 2 * sum(sizes[-tail:])
        room -= sizes[head] if takes_head else sizes[-tail - 1]
        if room < 0:
            break
        head, tail = (head + 1, tail) if takes_head else (head, tail + 1)
    return "\n".join([*lines[:head], f"... ({len(lines) - head - tail} more lines)", *lines[-tail:]])
