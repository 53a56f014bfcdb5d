"""Linear probes: the classes that can be read from frozen features without attention or hidden layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

PICTURES = 16_000  # most that are fitted on: some 25 s on one thread; with half of them, accuracy is a point lower
PENALTY = 1e-2  # a third and three times of it give the same accuracy on held-out pictures
ITERATIONS = 60  # seconds; 150 give 0.2 points more on held-out pictures


def probe(
    train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], sizes: Mapping[str, int], penalty: float = PENALTY
) -> dict[str, float]:
    """Fit linear classifiers on `train`; returns the accuracy of each on the rows of `held_out` to which it applies.

    train, held_out: features [rows, width] and targets [rows, heads], -1 where a head does not apply; sizes: number of
    classes of every head, in the order of the columns. The features are standardised by the mean and deviation of
    `train`. Equal inputs give equal numbers: float32 on one thread, from zero weights.
    """
    with exact_products():
        features, targets = train
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        weights = fit_logistic((features - mean) / deviation, targets, list(sizes.values()), penalty)
        classes = predict((held_out[0] - mean) / deviation, weights, list(sizes.values()))
    return accuracies(classes, held_out[1], sizes)


def fit_logistic(
    features: Tensor, targets: Tensor, sizes: Sequence[int], penalty: float, iterations: int = ITERATIONS
) -> Tensor:
    """Weights [width + 1, all classes] of multinomial logistic regressions, one a head; the last row is the bias.

    Minimises sum over heads of (mean cross-entropy over the head's rows) + penalty / 2 |weights|^2 by LBFGS, all
    heads at once. The problems are convex and independent; one product for all of them is faster than many.
    """
    inputs = _append_one(features)
    weights = torch.zeros(inputs.shape[1], sum(sizes), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = (inputs @ weights).split(list(sizes), dim=1)
        total = head_entropies(scores, targets).sum() + penalty / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return weights.detach()


def head_entropies(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The cross entropy of every head, [heads], each the mean over the rows to which the head applies.

    logits: of every head, each [rows, size]. targets: [rows, heads], -1 where a head does not apply.
    """
    return torch.stack(
        [
            functional.cross_entropy(scores, target, ignore_index=-1, reduction="sum")
            / (target >= 0).sum().clamp(min=1)
            for scores, target in zip(logits, targets.unbind(1), strict=True)
        ]
    )


def predict(features: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """The most likely class of every head, [rows, heads]."""
    scores = (_append_one(features) @ weights).split(list(sizes), dim=1)
    return torch.stack([score.argmax(-1) for score in scores], dim=1)


def accuracies(classes: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
    """Share of right classes of every head; both tensors are [rows, heads], targets -1 where a head does not apply.

    A head that applies to no row has no accuracy and is left out.
    """
    right, applicable = (classes == targets).sum(0), (targets >= 0).sum(0)
    counts = zip(names, right.tolist(), applicable.tolist(), strict=True)
    return {name: round(hits / rows, 4) for name, hits, rows in counts if rows}


def _append_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


@contextmanager
def exact_products() -> Iterator[None]:
    """Products in full float32 on one thread: sums have one order, so a machine repeats their bytes."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
