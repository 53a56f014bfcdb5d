"""A linear probe: what can be read from frozen features by a plane alone, without attention or hidden layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

PICTURES = 16_000  # at most, to fit on: some 25 s on one thread. Half as many read about one point less
PENALTY = 1e-2  # a third and three times of it read as much from pictures kept back
ITERATIONS = 60  # seconds; 150 read a fifth of a point more from pictures kept back


def probe(
    train: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], sizes: Mapping[str, int], penalty: float = PENALTY
) -> dict[str, float]:
    """Fit linear classifiers on `train`, return the accuracy of each on the rows of `kept` to which it applies.

    train, kept: features [rows, width] and targets [rows, heads], -1 where a head does not apply; sizes: number of
    classes of every head, in the order of the columns. The features are standardised by the mean and deviation of
    `train`. Equal input gives equal numbers: float32 on one thread, starting from zero.
    """
    with exact_products():
        features, targets = train
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        weights = fit_logistic((features - mean) / deviation, targets, list(sizes.values()), penalty)
        found = predict((kept[0] - mean) / deviation, weights, list(sizes.values()))
    return accuracies(found, kept[1], sizes)


def fit_logistic(
    features: Tensor, targets: Tensor, sizes: Sequence[int], penalty: float, iterations: int = ITERATIONS
) -> Tensor:
    """Weights [width + 1, all classes] of multinomial logistic regressions, one a head; the last row is the bias.

    Minimises sum over heads of (mean cross-entropy over the head's rows) + penalty / 2 |weights|^2 by LBFGS, all
    heads at once. The problems are convex and share nothing; one product for all of them is quicker than many.
    """
    inputs = _with_one(features)
    weights = torch.zeros(inputs.shape[1], sum(sizes), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = (inputs @ weights).split(list(sizes), dim=1)
        entropies = [
            functional.cross_entropy(found, wanted, ignore_index=-1, reduction="sum") / (wanted >= 0).sum().clamp(min=1)
            for found, wanted in zip(scores, targets.unbind(1), strict=True)
        ]
        total = torch.stack(entropies).sum() + penalty / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return weights.detach()


def predict(features: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """The likeliest class of every head, [rows, heads]."""
    scores = (_with_one(features) @ weights).split(list(sizes), dim=1)
    return torch.stack([score.argmax(-1) for score in scores], dim=1)


def accuracies(found: Tensor, wanted: Tensor, names: Iterable[str]) -> dict[str, float]:
    """Share of right classes of every head over its rows; both are [rows, heads], `wanted` -1 where none applies.

    A head that applies to no row has no accuracy and is left out.
    """
    right, asked = (found == wanted).sum(0), (wanted >= 0).sum(0)
    counts = zip(names, right.tolist(), asked.tolist(), strict=True)
    return {name: round(hits / rows, 4) for name, hits, rows in counts if rows}


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


@contextmanager
def exact_products() -> Iterator[None]:
    """Products in full float32 on one thread: sums in one order, so equal bytes on one machine."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
