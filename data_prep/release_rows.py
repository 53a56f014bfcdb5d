"""What converters read owners' files with: rows, fields, lines, lists. A fault names the file and the row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from robustmerge.stage.files import require_file
from robustmerge.stage.json_stream import Element, iterate_members
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

T = TypeVar("T")
_KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def map_rows(read: Callable[[Element], T], rows: Iterable[Element], path: Path) -> Iterator[T]:
    """Yield what `read` makes of each row of a file. read: no generator, whose errors would come after its call.

    Raises UserError naming the file and the row for one that lacks a field, or has another kind of value in it.
    """
    for row in rows:
        try:
            made = read(row)
        except KeyError as error:
            raise UserError(f"{path}, {row.place}: field {error} is missing") from error
        except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}, {row.place}: {error}") from error
        yield made


def take(row: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field of a row. Raises KeyError if it is missing, TypeError if it is of another kind: `f"{None}"` is a text."""
    value = row[name]
    if not isinstance(value, kind):
        raise TypeError(f"field '{name}' must be {_KINDS[kind]}, got {quote(value)}")
    return value


def iterate_lines(path: Path, what: str) -> Iterator[Element]:
    """Yield the lines of a text file that are not blank, without their ends. what: the kind of file, for messages."""
    with open(require_file(path, what), encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Element(f"line {number}", line.rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} cannot be read as {what}: it is not UTF-8 ({error.reason})") from error


def iterate_list(path: Path, key: str, what: str) -> Iterator[Element]:
    """Yield the elements of the list that a JSON object has under a key. what: the kind of file, for messages.

    Raises UserError for a list that is missing or empty: the file is another one.
    """
    is_empty = True
    for one in iterate_members(path, what):
        if one.key == key:
            is_empty = False
            yield one
    if is_empty:
        raise UserError(f"{path} cannot be read as {what}: it has nothing under '{key}'")


def iterate_problems(problems: Path, splits: Path, names: Collection[str]) -> Iterator[Element]:
    """Yield the problems of one file that another lists under one of the names, in the order of the first file.

    problems: an object of id: problem; splits: an object of name: [id, ...].
    Raises UserError if a problem that is listed is not there: the files belong to different versions.
    """
    # As a dictionary, which keeps the order, for the message.
    listed = {str(one.value): None for one in iterate_members(splits, "a file of splits") if one.key in names}
    for problem in iterate_members(problems, "a file of problems"):
        if problem.key in listed:
            del listed[problem.key]
            yield problem
    if listed:
        raise UserError(f"{problems} lacks problems that {splits} lists: {', '.join(first_few(list(listed)))}")
