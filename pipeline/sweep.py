"""The points of a sweep: which keys of the command line differ between them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.plan import Plan


def find_swept_keys(plans: Sequence[Plan], ignored: Collection[str] = ()) -> list[str]:
    """The keys whose value differs between the points, sorted. ignored: keys, or the topmost part of keys."""
    keys = {key for plan in plans for key in plan.overrides if not {key, key.partition(".")[0]} & set(ignored)}
    return sorted(key for key in keys if len({plan.overrides.get(key) for plan in plans}) > 1)


def describe_point(plan: Plan, keys: Sequence[str]) -> str:
    """`peft.r=8, seed=default`: the values that one point has for the swept keys; "" where nothing is swept."""
    return ", ".join(f"{key}={plan.overrides.get(key, 'default')}" for key in keys)
