"""YAML files that a user gives: plain values, read within bounds, refused with the line that is wrong."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robustmerge.stage.files import read_text
from robustmerge.stage.settings import UserError

LARGEST = 100_000  # characters; what is read here has a few thousand, and a megabyte would take half a minute


class _PlainLoader(yaml.SafeLoader):
    """A loader of texts, numbers, lists and mappings; refuses `*alias` and `!!tag`, which can make more of them.

    A key that stands twice is refused, and one that is no text: `no: path` would name an expert False.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or (getattr(event, "tag", None) or "!") != "!":
            raise yaml.composer.ComposerError(None, None, "tags (!x) and aliases (*x) are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = ""
            if not isinstance(key, str | int) or isinstance(key, bool):
                problem = f"a key must be a text, got {key!r}: put it in quotes"
            elif str(key) in seen:
                problem = f"the key '{key}' stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep)


# PyYAML reads YAML 1.1, where 1e-5 is a text (for Hydra, which reads the same files, it is a number), and 016 and 1:20
# are the whole numbers 14 and 80.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|\.(inf|Inf|INF))\Z|\.(nan|NaN|NAN)\Z"
    ),
}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_value(text: str) -> Any:
    """A value as it could stand in a YAML file; what cannot is the text itself.

    >>> parse_value("1e-5"), parse_value("null"), parse_value("{vqa: 0.5}"), parse_value("a: b: c")
    (1e-05, None, {'vqa': 0.5}, 'a: b: c')
    """
    try:
        return yaml.load(text, _PlainLoader) if len(text) <= LARGEST else text
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text


@lru_cache(maxsize=64)  # a sweep reads the same files of methods for every point
def _load(text: str) -> Any:
    content = yaml.load(text, _PlainLoader)
    json.dumps(content, default=str, ensure_ascii=False).encode()  # a date or a lone surrogate is refused here
    return content


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read the mapping in a YAML file. what: the kind of file, for messages, as in `a method file`.

    Raises UserError if the file does not exist or holds something else.
    """
    text = read_text(path, what)
    if len(text) > LARGEST:
        raise UserError(f"{path} cannot be read as {what}: it has {len(text)} characters, more than {LARGEST}")
    try:
        content = deepcopy(_load(text))
    except RecursionError:
        raise UserError(f"{path} cannot be read as {what}: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # no YAML, or no date, number or character
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}{where} cannot be read as {what}: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} cannot be read as {what}: it must hold a mapping of names, as `name: value`")
    return content
