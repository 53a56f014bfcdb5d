"""The choice stage: every method's strength, by its scores on the val questions."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan import Plan
from pipeline.stages.predict import predict
from pipeline.stages.score import score
from pipeline.strengths import describe_choice
from pipeline.sweep import describe_point, find_swept_keys


def choose_strengths(plans: Sequence[Plan]) -> None:
    """Answer and score the val questions at every strength, so that the plans can choose among them."""
    evaluations = [one for plan in plans for one in plan.val_evaluations]
    predict(evaluations)
    score(evaluations)


def print_choices(plans: Sequence[Plan]) -> None:
    """Print the strength chosen for every method, by point of the sweep if there are several."""
    keys = find_swept_keys(plans)
    for plan in plans:
        point = f"{describe_point(plan, keys)}: " if keys else ""
        titles = {method.name: method.title or method.name for method in plan.config.methods}
        for name, choice in plan.choices.items():
            print(f"{point}{titles[name]}: {describe_choice(choice)}")
