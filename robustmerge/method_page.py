"""What a method's file says of it: title, paper, description, and every setting with its value and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge.method import AnyMethod, Method, find_method_file, list_bases, read_method
from robustmerge.stage.files import read_text
from robustmerge.stage.settings import values_of

FORMULA = "Formula: "
NAMES = ("name", "title", "paper", "source")  # not what the method does
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:# *(?P<comment>.*))?")
_FURTHER = re.compile(r" +# *(?P<comment>.*)")


@dataclass(frozen=True)
class MethodPage:
    """A method as its file describes it.

    description: what it does, of which the first sentence stands alone. formula: in one line. settings: all of them, by
    dotted key; comments: what the files say of them. changed: the settings that are not neutral.
    """

    method: AnyMethod
    description: str
    formula: str
    settings: dict[str, Any]
    comments: dict[str, str]
    changed: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return re.split(r"(?<=[^.])\.(?=\s|$)", self.description, maxsplit=1)[0] + "."


def read_method_page(name: str | Path) -> MethodPage:
    """Read what a method's file, or one elsewhere, says of it. Raises UserError as `read_method` does."""
    method, file = read_method(name), find_method_file(name)
    settings = _flatten(method)
    neutral = _flatten(Method("neutral", strength=0.0))
    changed = {key: value for key, value in settings.items() if _is_changed(key, value, neutral)}
    comments: dict[str, str] = {}
    for one in [*list_bases(file), file]:
        for key, comment in _read_comments(read_text(one, "a method file")):
            comments[key] = f"{comments[key]}; {comment}" if key in comments else comment
    description, _, formula = _read_description(file).partition(FORMULA)
    return MethodPage(method, description.strip(), formula, settings, comments, changed)


def _flatten(method: AnyMethod) -> dict[str, Any]:
    """The settings by dotted key, as --set takes them."""
    flat: dict[str, Any] = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping) and value and key not in ("strengths", "weights", "first"):
                add(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    values = {key: value for key, value in values_of(method).items() if key not in NAMES}
    if "target" in values:
        values = {"_target_": values.pop("target"), **values}
    add(values, "")
    return flat


def _is_changed(key: str, value: Any, neutral: Mapping[str, Any]) -> bool:
    return key not in ("_target_", "collect", "strengths") and value != neutral.get(key)


def _read_description(file: Path) -> str:
    """The comment that a file begins with, without the command in it; its last line may be a formula."""
    lines = []
    for line in read_text(file, "a method file").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith("bash "))


def _read_comments(text: str) -> Iterator[tuple[str, str]]:
    """Key and comment of every setting that has one; lines below it that begin with # go on with it."""
    above: list[tuple[int, str]] = []  # indentation and key of the mappings that the line is in
    key = comment = ""
    for line in text.splitlines():
        if key and (further := _FURTHER.fullmatch(line)):
            comment += " " + further["comment"]
            continue
        if key and comment:
            yield key, comment
        match = _LINE.fullmatch(line)
        if match is None:
            key = comment = ""
            continue
        indent = len(match["indent"])
        above = [*(one for one in above if one[0] < indent), (indent, match["key"])]
        key, comment = ".".join(name for _, name in above), match["comment"] or ""
    if key and comment:
        yield key, comment
