"""The points of a sweep: one plan each, and the keys of the command line that differ between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import read_config
from pipeline.plan import Plan
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, refuse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

SHARED_BY_POINTS = (
    "profile",
    "jobs",
    "report",
    "logger",
    "bootstrap",
    "trainer",
    "protocol",
    "other_protocol",
    "limit",
    "ids",
)


def make_plans(points: Sequence[Mapping[str, Any]]) -> list[Plan]:
    """Make the plans of all points of a sweep. Raises UserError with all problems of their configs, each once."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    for point in points:
        try:
            plans.append(Plan(read_config(point)))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    refuse(problems)
    for key in SHARED_BY_POINTS:
        if len({repr(getattr(plan.config, key)) for plan in plans}) > 1:
            raise UserError(f"a sweep cannot run over {key}: all its points are made together and end in one report")
    return plans


def make_plan_with(settings: type[T], point: Mapping[str, Any]) -> tuple[Plan, T]:
    """Make the plan, and the dataclass of a program's own keys. Raises ConfigError with the problems of both."""
    point = dict(point)
    values = {field.name: point.pop(field.name) for field in dataclasses.fields(settings)}
    try:
        (plan,) = make_plans([point])
    except ConfigError as error:
        try:
            build(settings, values, "")
        except ConfigError as further:
            raise ConfigError(*error.problems, *further.problems) from error
        raise
    return plan, build(settings, values, "")


def find_swept_keys(plans: Sequence[Plan], ignored: Collection[str] = ()) -> list[str]:
    """The keys whose value differs between the points, sorted. ignored: keys, or the topmost part of keys."""
    keys = {key for plan in plans for key in plan.overrides if not {key, key.partition(".")[0]} & set(ignored)}
    return sorted(key for key in keys if len({plan.overrides.get(key) for plan in plans}) > 1)


def describe_point(plan: Plan, keys: Sequence[str]) -> str:
    """Describe a point by its values of the swept keys: `peft.r=8, seed=default`; "" where nothing is swept."""
    return ", ".join(f"{key}={plan.overrides.get(key, 'default')}" for key in keys)
