"""Choose: every method's strength, by its scores on the val questions."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan import Plan
from pipeline.stages.predict import predict
from pipeline.stages.score import score
from pipeline.strengths import describe


def choose_strengths(plans: Sequence[Plan]) -> None:
    """Answer and score the val questions at every strength, so that the lines can choose."""
    predict(plans, lambda plan: plan.tried, "val")
    score(plans, lambda plan: plan.tried, "val")


def tell_choices(plans: Sequence[Plan]) -> None:
    """After the val questions: the strength chosen for every method, by point where there are several."""
    for plan in plans:
        own = [word for word in plan.config.overrides if any(word not in other.config.overrides for other in plans)]
        point = f"{', '.join(own)}: " if own else ""
        titles = {method.name: method.title or method.name for method in plan.config.methods}
        for name, choice in plan.choices.items():
            print(f"{point}{titles[name]}: {describe(choice)}")
