"""Reading of large JSON files element by element, so that no file is in memory as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from robustmerge.stage.files import check_json, parse_json, require_file, unique_decoder
from robustmerge.stage.settings import UserError

CHUNK = 2**20  # bytes read at a time
LARGEST_ELEMENT = 2**26  # characters of one element
_AFTER = tuple(" \t\n\r,:]}")
_SPACE = re.compile(r"[ \t\n\r]*")


class Element(NamedTuple):
    """An element of a file. place: `record 3`, `line 3`, `annotations 3` or `'key'`; key: of an object's member.

    file: which it is in, where that is not the first or only one that a reader takes.
    """

    place: str
    value: Any
    key: str = ""
    file: Path | None = None


def iterate_records(path: Path, what: str) -> Iterator[Element]:
    """Yield the elements of a JSON list, or the values of JSON lines, whichever the file holds; one object is one.

    what: the kind of file, for messages, as in `a question file`. Raises UserError as `iterate_members` does.
    """
    path = require_file(path, what)
    with open(path, "rb") as file:
        start = _skip_mark(file)
        first = _first_byte(file)
        file.seek(start)
        if first == b"[":
            window = _Window(path, what, file)
            yield from window.walk_list("record")
            window.expect_end()
        elif first == b"{" and path.suffix == ".json" and not _holds_lines(file, start):
            yield Element("record 1", _Window(path, what, file).decode_whole())
        else:
            yield from _iterate_lines(path, what, file)


def iterate_members(path: Path, what: str) -> Iterator[Element]:
    """Yield the members of a JSON object; of a member that is a list, its elements one by one.

    Raises UserError naming file and place for whatever is no file, no UTF-8, no JSON, or no object: what comes before
    has been yielded then.
    """
    path = require_file(path, what)
    with open(path, "rb") as file:
        _skip_mark(file)
        yield from _Window(path, what, file).walk_object()


def _skip_mark(file: IO[bytes]) -> int:
    """Go behind a byte order mark, if the file begins with one. Returns the position."""
    mark = codecs.BOM_UTF8
    return file.seek(len(mark) if file.read(len(mark)) == mark else 0)


def _first_byte(file: IO[bytes]) -> bytes:
    while line := file.readline(CHUNK):
        if first := line.strip()[:1]:
            return first
    return b""


def _holds_lines(file: IO[bytes], start: int) -> bool:
    """Whether the first line that is not blank is a value of its own and more follow."""
    while not (line := file.readline(LARGEST_ELEMENT)).strip() and line:
        continue
    rest = any(line.strip() for line in iter(lambda: file.readline(CHUNK), b""))
    file.seek(start)
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return rest


def _iterate_lines(path: Path, what: str, file: IO[bytes]) -> Iterator[Element]:
    for number, line in enumerate(iter(lambda: file.readline(LARGEST_ELEMENT), b""), start=1):
        if len(line) == LARGEST_ELEMENT:
            raise UserError(f"{path}, line {number} is not valid JSON: it is longer than {LARGEST_ELEMENT} bytes")
        if not line.strip():
            continue
        try:
            yield Element(f"line {number}", parse_json(line.decode(), unique_keys=True))
        except UnicodeDecodeError as error:
            raise _no_utf8(path, what, error) from error
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not valid JSON: {error}") from error


def _no_utf8(path: Path, what: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path} cannot be read as {what}: it is not UTF-8 ({error.reason})")


class _Window:
    """A part of a JSON file's text, from which one value after the other is decoded."""

    def __init__(self, path: Path, what: str, file: IO[bytes]):
        self.path, self.what, self.file = path, what, file
        self.text, self.at, self.line, self.is_whole = "", 0, 1, False
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def walk_list(self, name: str) -> Iterator[Element]:
        """Yield the elements of the list that begins here, each with the list's name and its number as its place."""
        self._expect("[")
        number = 0
        while not self._take("]"):
            if number:
                self._expect(",")
            number += 1
            place = f"{name} {number}"
            yield Element(place, self._decode(place))

    def walk_object(self) -> Iterator[Element]:
        """Yield the members of the object that is all of the file; of a member that is a list, its elements."""
        self._expect("{")
        seen: set[str] = set()
        while not self._take("}"):
            if seen:
                self._expect(",")
            key = self._decode("a key")
            if not isinstance(key, str):
                self._fail("a key must be text")
            if key in seen:
                self._fail(f"the key {key!r} occurs twice in an object")
            seen.add(key)
            self._expect(":")
            if self._peek() == "[":
                yield from (Element(one.place, one.value, key) for one in self.walk_list(key))
            else:
                yield Element(repr(key), self._decode(repr(key)), key)
        self.expect_end()

    def decode_whole(self) -> Any:
        value = self._decode("record 1")
        self.expect_end()
        return value

    def _decode(self, place: str) -> Any:
        """Decode the next value. What follows it in the window is no part of it, as the `.5` of a number may be."""
        self._peek()
        while True:
            is_last = self.is_whole or len(self.text) - self.at > LARGEST_ELEMENT
            try:
                value, end = unique_decoder.raw_decode(self.text, self.at)
                if is_last or self.text[end : end + 1] in _AFTER:
                    break
            except RecursionError:
                self._fail("it is nested too deeply", place)
            except json.JSONDecodeError as error:
                if self.is_whole:
                    self._fail(error.msg, place, error.pos)
                if is_last:
                    self._fail(f"no value ends within {LARGEST_ELEMENT:,} characters", place)
            except ValueError as error:
                self._fail(str(error), place)
            self._read()
        text, self.at = self.text[self.at : end], end
        try:
            check_json(value, text)
        except ValueError as error:
            self._fail(str(error), place)
        return value

    def _peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.is_whole:
                return self.text[self.at : self.at + 1]
            self._read()

    def _take(self, mark: str) -> bool:
        if self._peek() != mark:
            return False
        self.at += 1
        return True

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            found = self._peek()
            self._fail(f"expected '{mark}', got {found!r}" if found else f"it ends where '{mark}' should come")

    def expect_end(self) -> None:
        if self._peek():
            self._fail("Extra data")

    def _read(self) -> None:
        """Read on, and drop what has been decoded."""
        self.line += self.text.count("\n", 0, self.at)
        data = self.file.read(max(CHUNK, len(self.text) - self.at))  # twice as much each time: one value stays linear
        try:
            self.text = self.text[self.at :] + self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _no_utf8(self.path, self.what, error) from error
        self.at, self.is_whole = 0, not data

    def _fail(self, problem: str, place: str = "", position: int | None = None) -> NoReturn:
        position = self.at if position is None else position
        line = self.line + self.text.count("\n", 0, position)
        where = f"{self.path}, {place}," if place else str(self.path)
        raise UserError(f"{where} is not valid JSON: {problem} (line {line})")
