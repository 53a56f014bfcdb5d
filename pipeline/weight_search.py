"""The search for a weight of every expert and a strength, by val scores: CMA-ES over their logarithms.

What LoRAHub (https://arxiv.org/abs/2307.13269) and mergekit-evolve do, with the val questions of the benchmark. CMA-ES
(https://arxiv.org/abs/1604.00772) needs no derivative, and asks for the merges of a generation together. Only the
scores of the merges are stored; the search is replayed from them whenever its result is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from robustmerge.method import Method

SPREAD = 0.3  # of the first generation: weights between about 0.55 and 1.8
SEED = 1
DIGITS = 3  # of a logarithm, so that a merge has the same address wherever its search runs
FEWEST = 2  # generations

Evaluate = Callable[[Sequence[Method]], list[float]]


@dataclass(frozen=True)
class Found:
    """The best merge of a search. method: with its weights and strength; factor: of the default update.

    mean, start: the mean val score (0..100) of the method found, and of the one that the search began with. tried: all
    that were evaluated.
    """

    method: Method
    weights: Mapping[str, float]
    factor: float
    mean: float
    start: float
    tried: tuple[Method, ...]


def search_weights(method: Method, experts: Sequence[str], factor: float, budget: int, evaluate: Evaluate) -> Found:
    """Search from the method's own weights at `factor` times its default update; of equal scores the first is taken.

    budget: the most merges that are evaluated, of which the first is the start and the others are whole generations.
    evaluate: the mean val scores of the merges of a generation.
    """
    import cma

    def merge_at(logarithms: Sequence[float]) -> tuple[Method, dict[str, float], float]:
        *of_weights, of_factor = (math.exp(round(x, DIGITS)) for x in logarithms)
        of_factor *= factor
        weights = {
            name: given * w for name, given, w in zip(experts, method.weights_of(experts), of_weights, strict=True)
        }
        return replace(method.with_factor(of_factor), weights={**weights}), weights, of_factor

    start = [0.0] * (len(experts) + 1)
    strategy = cma.CMAEvolutionStrategy(start, SPREAD, {"seed": SEED, "verbose": -9})
    tried = [(merge_at(start), evaluate([merge_at(start)[0]])[0])]
    while len(tried) + strategy.popsize <= budget:
        points = strategy.ask()
        merges = [merge_at(point) for point in points]
        means = evaluate([merge for merge, _, _ in merges])
        strategy.tell(points, [-mean for mean in means])
        tried += zip(merges, means, strict=True)
    (best, weights, found), mean = max(tried, key=lambda one: one[1])
    methods = tuple(method for (method, _, _), _ in tried)
    return Found(best, weights, found, mean, tried[0][1], methods)


def problems_of_budget(budget: int, experts: int) -> list[str]:
    """Why the budget is too small to search the weights of so many experts; CMA-ES sets the size of a generation."""
    least = 1 + FEWEST * (4 + int(3 * math.log(experts + 1)))
    rule = f"search_budget must be at least {least}: the start and {FEWEST} generations for {experts} experts"
    return [] if budget >= least else [f"{rule}, got {budget} (search_budget)"]


def describe_found(found: Found) -> str:
    """Describe the result of a search in one line."""
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    return (
        f"weights {weights} and {found.factor:.3g} x the default's update searched on val: {found.mean:.1f} against "
        f"{found.start:.1f} at the start, {len(found.tried)} merges tried"
    )
