"""Settings that a method does not use, as the density of a competition that it does not hold.

They are told, and they are no part of what a result is known by: the same result has one address. They stay in the
method as they were given, so that another rule or space finds them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustmerge.method_checks import USUAL_SCOPE

if TYPE_CHECKING:
    from robustmerge.method import Method, OutsideMethod


def find_unused(method: Method | OutsideMethod) -> tuple[str, ...]:
    """The keys, as `balance.density`, of settings that are not at their default and change nothing."""
    return tuple(key for key in _idle_keys(method) if _value_of(method, key) != _default_of(method, key))


def without_unused(method: Method | OutsideMethod) -> Method | OutsideMethod:
    """The method with the settings that it does not use at their defaults."""
    changes: dict[str, Any] = {}
    for key in find_unused(method):
        name, _, inner = key.partition(".")
        value = _default_of(method, key)
        changes[name] = replace(changes.get(name, getattr(method, name)), **{inner: value}) if inner else value
    return replace(method, **changes) if changes else method


def _idle_keys(method: Method | OutsideMethod) -> list[str]:
    """The keys that change nothing in this method, whatever they are."""
    used = {"out.dtype": method.output_format != "model"}  # a model has the dtype of its base
    if hasattr(method, "prunings"):
        rules = {step.rule for step in method.prunings}
        is_scaled, is_balanced = bool(method.scaled_parts), method.combine == "balanced"
        has_basis = method.space == "knots" and not method.is_sum_of_updates
        used |= {
            "prune.scope": "magnitude" in rules or method.combine in ("elected", "balanced"),
            "prune.count": "magnitude" in rules,
            "scale.normalize": is_scaled,
            "scale.floor": is_scaled and bool(rules),  # without pruning all scales are 1, and no row is emptied
            "scale.empty_row": is_scaled and bool(rules),
            "disjoint": method.combine == "elected",
            "balance.density": is_balanced,
            "balance.variant": is_balanced,
            "weights": any(weight != 1 for weight in (method.weights or {}).values()),
            "seed": "random" in rules,
            "basis.cut": has_basis,
            "basis.relative": has_basis,
        }
    return [key for key, is_used in used.items() if not is_used]


def _value_of(method: Method | OutsideMethod, key: str) -> Any:
    name, _, inner = key.partition(".")
    value = getattr(method, name)
    return getattr(value, inner) if inner else value


def _default_of(method: Method | OutsideMethod, key: str) -> Any:
    if key == "prune.scope":
        return USUAL_SCOPE[method.space]
    name, _, inner = key.partition(".")
    return getattr(type(getattr(method, name)), inner) if inner else getattr(type(method), name)
