"""The choice stage: every method's strength, and weights where they are searched, by scores on the val questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean, stdev

from pipeline.plan import Plan
from pipeline.stages.base import make_bases
from pipeline.stages.merge import merge, merge_by
from pipeline.stages.predict import check_devices, predict
from pipeline.stages.prepare import prepare
from pipeline.stages.score import find_unscored, score
from pipeline.strengths import describe_choice
from pipeline.sweep import describe_point, find_swept_keys
from pipeline.weight_search import describe_found
from robustmerge.method import AnyMethod
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_columns


def choose(plans: Sequence[Plan]) -> None:
    """Merge by every method at every strength, choose among them, search weights where that is wanted, and print it."""
    merge(plans)
    check_devices(plans)
    prepare(plans)
    make_bases(plans)
    merge(plans, choose=True)
    choose_strengths(plans)
    search_weights(plans)
    print_choices(plans)


def check_choosing(plans: Sequence[Plan]) -> None:
    """Raises UserError if there is nothing to choose, so that no val question would be answered."""
    if not any(plan.candidate_methods or plan.searched_methods for plan in plans):
        raise UserError(
            "there is nothing to choose: no method has a strength that is free (merge.strength, strength_grid) or "
            "weights to search (weight_search), or no task has val questions (tasks)"
        )


def choose_strengths(plans: Sequence[Plan]) -> None:
    """Answer and score the val questions at every strength, so that the plans can choose among them."""
    evaluations = [one for plan in plans for one in plan.val_evaluations]
    predict(find_unscored(evaluations))
    score(evaluations)


def search_weights(plans: Sequence[Plan]) -> None:
    """Merge, answer and score what the searches ask for, one search after the other, generation by generation."""
    for plan in plans:
        for name in plan.searched_methods:
            plan.search(name, partial(_evaluate, plan))


def _evaluate(plan: Plan, methods: Sequence[AnyMethod]) -> list[float]:
    """The mean val scores of merges, which are made where they are not there."""
    merge_by([(plan, method) for method in methods])
    evaluations = plan.evaluate_on_val(methods)
    predict(find_unscored(evaluations))
    score(evaluations)
    return plan.val_means(methods)


def print_choices(plans: Sequence[Plan]) -> None:
    """Print what was chosen and found for every method, by point of the sweep if there are several."""
    keys = find_swept_keys(plans)
    for plan in plans:
        point = f"{describe_point(plan, keys)}: " if keys else ""
        titles = _titles_of(plan)
        for name, choice in plan.choices.items():
            print(f"{point}{titles[name]}: {describe_choice(choice)}")
        for name, found in plan.searches.items():
            print(f"{point}{titles[name]}: {describe_found(found)}")


def _titles_of(plan: Plan) -> dict[str, str]:
    return {method.name: method.title or method.name for method in plan.config.methods}


def print_val_means(plans: Sequence[Plan]) -> None:
    """Print the mean val score of every method at its chosen strength, the best first, over the seeds of the sweep."""
    keys = [key for key in find_swept_keys(plans) if key != "seed"]
    means: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for plan in plans:
        point = f" ({describe_point(plan, keys)})" if keys else ""
        titles = _titles_of(plan)
        for name, choice in plan.choices.items():
            pair = choice.means[choice.factor], choice.means.get(1.0)
            means.setdefault((titles[name] + point, "chosen"), []).append(pair)
        for name, found in plan.searches.items():
            means.setdefault((titles[name] + point, "weights searched"), []).append((found.mean, None))
    best = sorted(means.items(), key=lambda item: -fmean(mean for mean, _ in item[1]))
    rows = [[title, how, *_format_means(pairs)] for (title, how), pairs in best]
    print("\nMean val scores of the seen tasks (%); no test question is answered\n")
    print("\n".join(format_columns(("method", "", "mean", "± seeds", "default"), rows, (0, 1))))


def _format_means(pairs: Sequence[tuple[float, float | None]]) -> list[str]:
    """The mean, its deviation over seeds, and the mean at the default strength."""
    means, defaults = [mean for mean, _ in pairs], [default for _, default in pairs if default is not None]
    spread = f"{stdev(means):.2f}" if len(means) > 1 else ""
    return [f"{fmean(means):.2f}", spread, f"{fmean(defaults):.2f}" if defaults else ""]
