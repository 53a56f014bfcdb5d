"""The points of a sweep: one plan each, and the keys of the command line that differ between them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from eval.report.results import SweptKey
from pipeline.config import read_config
from pipeline.plan import Plan
from pipeline.program import list_groups
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, refuse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

SHARED_BY_POINTS = (
    "profile",
    "jobs",
    "merge_device",
    "report",
    "pdf",
    "logger",
    "bootstrap",
    "trainer",
    "protocol",
    "other_protocol",
    "paper_table",
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
    _refuse_other_questions(plans)
    return plans


def _refuse_other_questions(plans: Sequence[Plan]) -> None:
    """Raises UserError for points that would be compared with each other on different test questions."""
    counts = {(plan.config.benchmark.name, plan.config.benchmark.counts.test) for plan in plans}
    seeds = {(plan.config.benchmark.name, plan.config.benchmark.seed) for plan in plans}
    names = {plan.config.benchmark.name for plan in plans}
    if len(counts) > len(names):
        raise UserError("a sweep cannot run over benchmark.counts.test: its points are scored on the same questions")
    if len(seeds) > len(names) and find_point_keys(plans) != ["benchmark.seed"]:
        raise UserError("a sweep over benchmark.seed, which draws other questions, cannot run over another key as well")


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


def is_of_method(key: str) -> bool:
    """Whether a key of the command line is a setting of the one method that `merge=` names."""
    return key.startswith("merge.")


def find_point_keys(plans: Sequence[Plan]) -> list[str]:
    """The keys that tell the points apart, but for the seed and the choice of the method."""
    return [key for key in find_swept_keys(plans) if key not in ("seed", "merge")]


def find_ordered_key(plans: Sequence[Plan]) -> SweptKey | None:
    """The only key besides seed and method that differs between the points, if its values have an order.

    Numbers are in their order, words and models in that of the command line; switches, lists and choices of another
    file have none.
    """
    keys = find_point_keys(plans)
    if len(keys) != 1 or (keys[0] in list_groups() and keys[0] != "model"):
        return None
    (key,) = keys
    values = list(dict.fromkeys(plan.overrides.get(key, "") for plan in plans))
    is_switch = {value.lower() for value in values} <= {"true", "false"}
    if is_switch or not all(re.fullmatch(r"[\w.+-]+", value) for value in values):
        return None
    with contextlib.suppress(ValueError):
        values.sort(key=float)
    methods = {method.name for plan in plans for method in plan.config.methods}
    titles = {value: f"{' '.join(key.split('.')[-2:]).replace('_', ' ')} = {value}" for value in values}
    return SweptKey(key, titles, is_facet=not is_of_method(key) or len(methods) > 1)


def describe_point(plan: Plan, keys: Sequence[str]) -> str:
    """Describe a point by its values of the swept keys: `peft.r=8, seed=default`; "" where nothing is swept."""
    return ", ".join(f"{key}={plan.overrides.get(key, 'default')}" for key in keys)
