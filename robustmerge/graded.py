"""Numbers that may differ by module: strengths and weights. No torch is loaded.

    0.5                                     everywhere
    {".*vision.*": 0.5, "default": 1.0}     of the first pattern that matches the whole name of a module
    [0.2, 1.0]                              interpolated linearly over the depth, from the first to the last layer

A module's depth is that of its layer, by the layers' numbers in the names of the adapted modules; every stack of layers
(a vision tower, a language model) has its own. A module outside of all layers, such as a projector or a head, takes the
middle of the list: its name does not say whether it comes before or after them. mergekit, from which these lists come,
knows this of its models and takes the first or the last number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from robustmerge.formats.names import find_layer
from robustmerge.formats.patterns import PatternError, find_first_whole_matches
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

DEFAULT = "default"
MIDDLE = 0.5
SHOWN_MODULES = 3

Gradient = tuple[float, ...]
Patterns = tuple[tuple[str, float], ...]  # in order, as a mapping would be sorted in the identity of a result
Grade = float | Gradient | Patterns | dict[str, float]


def order_patterns(grade: Grade) -> Grade:
    """The same grade, with a mapping of patterns as pairs, and a list as a tuple."""
    if isinstance(grade, Mapping):
        return tuple(grade.items())
    return tuple(grade) if isinstance(grade, list) else grade


def is_graded(grade: Any) -> bool:
    """Whether it is more than one number."""
    return isinstance(grade, (tuple, list, Mapping))


def is_over_depth(grade: Any) -> bool:
    """Whether it is numbers over the layers."""
    return is_graded(grade) and not has_patterns(order_patterns(grade))


def has_patterns(grade: Any) -> TypeGuard[Patterns]:
    """Whether it is a grade by patterns, in order."""
    return isinstance(grade, (tuple, list)) and bool(grade) and isinstance(grade[0], (tuple, list))


def map_numbers(function: Callable[[float], float], grade: Grade) -> Grade:
    """The grade with a function of every number.

    >>> map_numbers(abs, (("vision", -0.5), ("default", 1.0)))
    (('vision', 0.5), ('default', 1.0))
    """
    grade = order_patterns(grade)
    if has_patterns(grade):
        return tuple((pattern, function(value)) for pattern, value in grade)
    return tuple(map(function, grade)) if isinstance(grade, tuple) else function(grade)  # type: ignore[arg-type]


def list_numbers(grade: Grade) -> list[float]:
    """All numbers of a grade."""
    grade = order_patterns(grade)
    if has_patterns(grade):
        return [value for _, value in grade]
    return list(grade) if isinstance(grade, tuple) else [grade]  # type: ignore[arg-type,list-item]


def find_wrong_numbers(grade: Grade, what: str) -> list[str]:
    """What is wrong with a grade whatever the modules are."""
    grade = order_patterns(grade)
    if isinstance(grade, tuple) and len(grade) < 2 and not has_patterns(grade):
        return [f"{what} must have at least two numbers over the depth, or a pattern, got {format_grade(grade)}"]
    return [f"{what} must be a finite number, got {value}" for value in list_numbers(grade) if not math.isfinite(value)]


def format_grade(grade: Any, digits: int = 6) -> str:
    """A grade as `--set` takes it, its numbers with so many significant digits.

    >>> format_grade(0.5), format_grade([0.2, 1.0]), format_grade([["a", 1.0]])
    ('0.5', '[0.2, 1]', '{a: 1}')
    """
    if has_patterns(grade):
        return "{" + ", ".join(f"{pattern}: {value:.{digits}g}" for pattern, value in grade) + "}"
    numbers = [f"{value:.{digits}g}" for value in (grade if is_graded(grade) else [grade])]
    return f"[{', '.join(numbers)}]" if is_graded(grade) else numbers[0]


def resolve(grade: Grade, modules: Sequence[str], key: str) -> dict[str, float]:
    """The number of each module. key: of the setting, for messages.

    Raises UserError for a pattern that decides nothing or cannot be used, for modules that no pattern matches where
    there is no default, and for a list without layers to spread it over.
    """
    grade = order_patterns(grade)
    if has_patterns(grade):
        return _match(grade, modules, key)
    if not isinstance(grade, tuple):
        return dict.fromkeys(modules, float(grade))  # type: ignore[arg-type]
    depths = find_depths(modules)
    if all(depth is None for depth in depths.values()):
        there = _list_few(modules)
        raise UserError(
            f"a list of numbers goes over numbered layers, as in layers.3., and there are only {there} ({key})"
        )
    return {module: _interpolate(grade, MIDDLE if t is None else t) for module, t in depths.items()}  # type: ignore[arg-type]


def find_depths(modules: Sequence[str]) -> dict[str, float | None]:
    """How deep each module is in its stack of layers, from 0 to 1; None outside of all layers.

    The only layer of a stack is at 1, as in mergekit.

    >>> find_depths(["layers.2.q", "layers.3.q", "layers.6.q", "head"])
    {'layers.2.q': 0.0, 'layers.3.q': 0.25, 'layers.6.q': 1.0, 'head': None}
    """
    layers = {module: find_layer(module) for module in modules}
    stacks: dict[str, list[int]] = {}
    for layer in layers.values():
        if layer is not None:
            stacks.setdefault(layer[0], []).append(layer[1])

    def depth(stack: str, number: int) -> float:
        first, last = min(stacks[stack]), max(stacks[stack])
        return (number - first) / (last - first) if last > first else 1.0

    return {module: None if layer is None else depth(*layer) for module, layer in layers.items()}


def _interpolate(gradient: Gradient, t: float) -> float:
    """The number at t, between 0 and 1, of numbers at equal distances."""
    place = t * (len(gradient) - 1)
    below = int(place)
    low, high = gradient[below], gradient[min(below + 1, len(gradient) - 1)]
    return low + (place - below) * (high - low)  # equal numbers give that number


def _match(patterns: Patterns, modules: Sequence[str], key: str) -> dict[str, float]:
    named = [(pattern, value) for pattern, value in patterns if pattern != DEFAULT]
    default = dict(patterns).get(DEFAULT)
    try:
        places = find_first_whole_matches([pattern for pattern, _ in named], modules)
    except PatternError as error:
        where = "" if error.place is None else f"{quote(named[error.place][0])} is no regular expression: "
        raise UserError(f"{where}{error} ({key})") from None
    problems = [
        f"pattern {quote(pattern)} matches no module that none before it matches; it must match a whole name, where .* "
        f"is any text; there are {_list_few(modules)} ({key})"
        for place, (pattern, _) in enumerate(named)
        if place not in places
    ]
    numbers = {
        module: default if place is None else named[place][1] for module, place in zip(modules, places, strict=True)
    }
    if unmatched := [module for module, number in numbers.items() if number is None]:
        problems.append(
            f"no pattern matches {_list_few(unmatched)}; say what is for the rest, as {DEFAULT}: 1.0 ({key})"
        )
    if problems:
        raise UserError("\n".join(problems))
    return {module: number for module, number in numbers.items() if number is not None}


def _list_few(modules: Sequence[str]) -> str:
    few = ", ".join(map(quote, modules[:SHOWN_MODULES]))
    return f"{few} and {len(modules) - SHOWN_MODULES} more" if len(modules) > SHOWN_MODULES else few
