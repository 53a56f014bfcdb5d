"""The method files of `configs/merge`, read without Hydra: for notebooks and tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from robustmerge.method import Method, OutsideMethod, build_method
from robustmerge.runs import REPOSITORY
from robustmerge.settings import UserError, choose

METHODS = REPOSITORY / "configs" / "merge"


def list_methods() -> list[str]:
    """The names of all method files; `_neutral` holds what they have in common and is none."""
    return sorted(file.stem for file in METHODS.glob("[!_]*.yaml"))


def read_method(name: str | Path, **changes: Any) -> Method | OutsideMethod:
    """The method of `configs/merge/<name>.yaml`, or of a file elsewhere.

    changes: values by key, `__` for a dot, as in read_method("ties", space="delta", prune__density=0.1).
    Raises UserError for an unknown name or file, ConfigError for what is wrong in the file or the changes.
    """
    file = Path(name)
    if file.suffix != ".yaml":
        file = METHODS / f"{choose(str(name), list_methods(), 'method')}.yaml"
    elif not file.is_file():
        raise UserError(f"there is no method file {file}")
    values = _read(file)
    for key, value in changes.items():
        for part in reversed(key.split("__")):
            value = {part: value}
        values = _merged(values, value)
    return build_method(values)


def _read(file: Path) -> dict[str, Any]:
    """A file on top of those that its `defaults` name, as Hydra composes them."""
    own = yaml.safe_load(file.read_text())
    values: dict[str, Any] = {}
    for name in own.pop("defaults", ["_self_"]):
        values = _merged(values, own if name == "_self_" else _read(METHODS / f"{name}.yaml"))
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = _merged(values[key], value) if both else value
    return values
