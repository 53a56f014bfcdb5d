"""The choice stage: every method's strength, and weights where they are searched, by scores on the val questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipeline.plan import Plan
from pipeline.stages.merge import merge_by
from pipeline.stages.predict import predict
from pipeline.stages.score import score
from pipeline.strengths import describe_choice
from pipeline.sweep import describe_point, find_swept_keys
from pipeline.weight_search import describe_found
from robustmerge.method import AnyMethod


def choose_strengths(plans: Sequence[Plan]) -> None:
    """Answer and score the val questions at every strength, so that the plans can choose among them."""
    evaluations = [one for plan in plans for one in plan.val_evaluations]
    predict(evaluations)
    score(evaluations)


def search_weights(plans: Sequence[Plan]) -> None:
    """Merge, answer and score what the searches of all points ask for, generation by generation."""
    for plan in plans:
        for name in plan.searched_methods:
            plan.search(name, partial(_evaluate, plan))


def _evaluate(plan: Plan, methods: Sequence[AnyMethod]) -> list[float]:
    """The mean val scores of merges, which are made where they are not there."""
    merge_by([(plan, method) for method in methods])
    evaluations = plan.evaluate_on_val(methods)
    predict(evaluations)
    score(evaluations)
    return plan.val_means(methods)


def print_choices(plans: Sequence[Plan]) -> None:
    """Print what was chosen and found for every method, by point of the sweep if there are several."""
    keys = find_swept_keys(plans)
    for plan in plans:
        point = f"{describe_point(plan, keys)}: " if keys else ""
        titles = {method.name: method.title or method.name for method in plan.config.methods}
        for name, choice in plan.choices.items():
            print(f"{point}{titles[name]}: {describe_choice(choice)}")
        for name, found in plan.searches.items():
            print(f"{point}{titles[name]}: {describe_found(found)}")
