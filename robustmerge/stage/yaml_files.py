"""YAML files that a user gives: plain values, read within bounds, refused with the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from robustmerge.stage.files import read_text
from robustmerge.stage.settings import UserError

LARGEST = 100_000  # characters; what is read here has a few thousand, and a megabyte would take half a minute


class _PlainLoader(yaml.SafeLoader):
    """A loader of texts, numbers, lists and mappings; refuses `*alias` and `!!tag`, which can make more of them."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or (getattr(event, "tag", None) or "!") != "!":
            raise yaml.composer.ComposerError(None, None, "tags (!x) and aliases (*x) are not read", event.start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read the mapping in a YAML file. what: the kind of file, for messages, as in `a method file`.

    Raises UserError if the file does not exist or holds something else.
    """
    text = read_text(path, what)
    if len(text) > LARGEST:
        raise UserError(f"{path} cannot be read as {what}: it has {len(text)} characters, more than {LARGEST}")
    try:
        content = yaml.load(text, _PlainLoader)
        json.dumps(content, default=str, ensure_ascii=False).encode()
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
