"""Settings: frozen dataclasses built from plain mappings (a resolved config, a JSON file), and errors for users."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from robustmerge.stage.text import format_message

OUTSIDE_IDENTITY = "outside_identity"
LATER = "later"

# Words of settings that several packages know: how a picture becomes square, the weights' precision where answers are
# made, and how a CPU multiplies matrices there.
IMAGE_MODES = ("pad", "crop")
PRECISIONS = ("fp32", "fp16", "bf16")
PRODUCTS = ("exact", "fast")

T = TypeVar("T")


class UserError(Exception):
    """A foreseen mistake of the user's; the message says what is wrong and where, the value, and what is allowed.

    Entry points print it without a traceback and exit with status 2. What it quotes of foreign files is made fit for a
    terminal, and a message of more than 2 kB loses lines in its middle.
    """

    def __init__(self, text: object = ""):
        super().__init__(format_message(str(text)))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake in a configuration. key: of the setting, `density` or `prune.density`; of several, `limit, ids`.

    >>> print(Problem("density must be in (0, 1], got 2", "density").under("merge.prune"))
    density must be in (0, 1], got 2 (merge.prune.density)
    """

    text: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.key})" if self.key else self.text

    def under(self, where: str) -> Problem:
        """The same problem with its key prefixed by `where`, the key of the settings that contain it."""
        return Problem(self.text, ", ".join(_key(where, key) for key in self.key.split(", ")))


class ConfigError(UserError):
    """All problems of one configuration, one per line."""

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(map(str, self.problems)))


def refuse(problems: Iterable[Problem]) -> None:
    """Raises ConfigError if there is any problem."""
    if problems := tuple(problems):
        raise ConfigError(*problems)


def outside_identity(default: Any = dataclasses.MISSING) -> Any:
    """A field that does not change the result (jobs, per-device batch): it never enters an address."""
    return _marked(default, OUTSIDE_IDENTITY)


def later(default: Any) -> Any:
    """A field added after results existed: at its default it stays out of identities, so that old addresses hold."""
    return _marked(default, LATER)


def key_of(field: dataclasses.Field) -> str:
    """The key of a field: its name, without the `_` behind one that would be a word of Python (`for_`)."""
    return field.name.removesuffix("_")


def values_of(settings: Any) -> Any:
    """A settings dataclass as plain values by key, from which `build` makes it again."""
    if dataclasses.is_dataclass(settings):
        return {key_of(field): values_of(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: values_of(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(values_of, settings))
    return settings


def _marked(default: Any, mark: str) -> Any:
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={mark: True})
    return dataclasses.field(default=default, metadata={mark: True})


def suggest(name: str, choices: Iterable[str]) -> str:
    """`choose one of a, b, c (did you mean 'b'?)`, or a statement that there is nothing to choose from."""
    choices = sorted(str(choice) for choice in choices)
    if not choices:
        return "there is nothing to choose from"
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"choose one of {', '.join(choices)}{hint}"


def first_few(lines: Sequence[str], most: int = 5) -> list[str]:
    """Format the first lines and the number of further ones."""
    return [*lines[:most], *([f"(and {len(lines) - most} more)"] if len(lines) > most else [])]


def choose(name: str, choices: Iterable[str], what: str) -> str:
    """Return `name` if it is among the choices. Raises UserError that lists them."""
    choices = list(choices)
    if name not in choices:
        raise UserError(f"unknown {what} '{name}'; {suggest(name, choices)}")
    return name


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the frozen dataclass `cls` from `values`, nested dataclasses included.

    where: the key path of `values`, put into every message (`merge.prune.density`); empty for the topmost keys.
    Raises ConfigError with all problems at once: unknown keys with the choices, missing keys, wrong types,
    and whatever the `__post_init__` of the dataclasses refuse. If a nested dataclass is refused and its field has a
    default, the dataclass around it is checked all the same.
    """
    problems: list[Problem] = []
    settings = _build(cls, values, where, problems)
    refuse(problems)
    return settings


def convert(kind: Any, value: Any, key: str) -> Any:
    """The value as a type has it, as `build` converts a field's. Raises ConfigError if it is not of the type."""
    problems: list[Problem] = []
    converted = _coerce(kind, value, key, problems)
    refuse(problems)
    return converted


def convert_each(types_by_key: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, those with a type as this has them. Raises ConfigError for every one that is not of its type."""
    problems: list[Problem] = []
    converted = {key: _coerce(kind, values[key], _key(where, key), problems) for key, kind in types_by_key.items()}
    refuse(problems)
    return {**values, **converted}


def _build(cls: type, values: Mapping[str, Any], where: str, problems: list[Problem]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(Problem(f"expected a mapping, got {values!r}", where))
        return None
    types_of = typing.get_type_hints(cls)
    fields = {key_of(field): field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            problems.append(Problem(f"unknown key '{key}'; {suggest(key, fields)}", _key(where, key)))
    values_by_field, is_whole = {}, True
    for key, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if key in values and values[key] != "???":
            before = len(problems)
            value = _coerce(types_of[field.name], values[key], _key(where, key), problems)
            if len(problems) == before:
                values_by_field[field.name] = value
            elif not (has_default and isinstance(values[key], Mapping)):
                is_whole = False
        elif not has_default:
            problems.append(Problem("missing value", _key(where, key)))
            is_whole = False
    if not is_whole:
        return None
    try:
        return cls(**values_by_field)
    except ConfigError as error:
        problems.extend(problem.under(where) for problem in error.problems)
    return None


def _key(where: str, name: str) -> str:
    return ".".join(part for part in (where, name) if part)


def _coerce(kind: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(arguments, value, where, problems)
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _build(kind, value, where, problems)
    if origin in (tuple, list):
        return _coerce_sequence(origin, arguments, value, where, problems)
    if origin is dict or kind is dict or origin is Mapping:
        return _coerce_mapping(arguments, value, where, problems)
    return _coerce_scalar(kind, value, where, problems)


def _coerce_union(arguments: tuple, value: Any, where: str, problems: list[Problem]) -> Any:
    if value is None and type(None) in arguments:
        return None
    tries = []
    for kind in (kind for kind in arguments if kind is not type(None)):
        trial: list[Problem] = []
        coerced = _coerce(kind, value, where, trial)
        if not trial:
            return coerced
        tries.append(trial)
    nearest = min(tries, key=len)
    problems.extend(nearest)
    return None


def _coerce_sequence(origin: type, arguments: tuple, value: Any, where: str, problems: list[Problem]) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        problems.append(Problem(f"expected a list, got {value!r}", where))
        return None
    items = list(value)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            problems.append(Problem(f"expected {len(arguments)} values, got {len(items)}", where))
            return None
        kinds: Sequence[Any] = arguments
    else:
        kinds = [arguments[0] if arguments else Any] * len(items)
    coerced = [
        _coerce(kind, item, f"{where}[{index}]", problems)
        for index, (kind, item) in enumerate(zip(kinds, items, strict=True))
    ]
    return origin(coerced)


def _coerce_mapping(arguments: tuple, value: Any, where: str, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(Problem(f"expected a mapping, got {value!r}", where))
        return None
    kind = arguments[1] if len(arguments) == 2 else Any
    return {str(key): _coerce(kind, item, f"{where}.{key}", problems) for key, item in value.items()}


def _coerce_scalar(kind: type, value: Any, where: str, problems: list[Problem]) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
            return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    problems.append(Problem(f"expected {_NAMES.get(kind, kind.__name__)}, got {value!r}", where))
    return None


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
