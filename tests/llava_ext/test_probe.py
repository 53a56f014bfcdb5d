"""The linear probe: what it can read and what it cannot."""

from __future__ import annotations

import pytest
import torch

from llava_ext.small.probe import accuracies, exact_products, fit_logistic, probe


def draw(rows: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def quadrant(features: torch.Tensor) -> torch.Tensor:
    """Class 0 to 2, by planes through two of the features."""
    return torch.stack([features[:, 0], features[:, 1], -features[:, 0] - features[:, 1]], dim=1).argmax(1)


def test_what_planes_separate_is_read_whatever_the_scale_and_the_offset():
    features = draw(1000)
    targets = quadrant(features)[:, None]
    scaled = features * torch.tensor([1e3, 1e-3, 1, 1, 1, 1]) + 50 * torch.tensor([1, 0, 1, 0, 0, 0])
    measured = probe((scaled[:800], targets[:800]), (scaled[800:], targets[800:]), {"quadrant": 3})
    assert measured["quadrant"] > 0.95


def test_what_no_plane_separates_is_not_read():
    features = draw(2000)
    targets = (features[:, :1] * features[:, 1:2] > 0).long()
    measured = probe((features[:1500], targets[:1500]), (features[1500:], targets[1500:]), {"same_sign": 2})
    assert abs(measured["same_sign"] - 0.5) < 0.08


def test_a_head_is_fitted_and_measured_where_it_applies_as_if_it_were_alone():
    features = draw(600)
    whole = quadrant(features)
    part = torch.where(features[:, 2] > 0, whole, -1)
    sizes = {"whole": 3, "part": 3, "none": 4}
    targets = torch.stack([whole, part, torch.full_like(whole, -1)], dim=1)
    measured = probe((features[:400], targets[:400]), (features[400:], targets[400:]), sizes)
    train, held_out = part[:400] >= 0, part[400:] >= 0
    alone = probe(
        (features[:400][train], part[:400][train][:, None]),
        (features[400:][held_out], part[400:][held_out][:, None]),
        {"x": 3},
    )
    assert set(measured) == {"whole", "part"}
    assert measured["part"] == pytest.approx(alone["x"], abs=0.02)  # standardised over other rows


def test_the_weights_are_where_the_gradient_is_zero():
    features = draw(300)
    targets = quadrant(features)[:, None]
    penalty = 0.1
    weights = fit_logistic(features, targets, [3], penalty)
    shares = (features @ weights[:-1] + weights[-1]).softmax(1)
    error = shares - torch.nn.functional.one_hot(targets[:, 0], 3)
    assert torch.allclose(features.T @ error / 300 + penalty * weights[:-1], torch.zeros(6, 3), atol=1e-4)
    assert torch.allclose(error.mean(0), torch.zeros(3), atol=1e-4)


def test_equal_features_give_equal_bytes_and_the_settings_of_products_stay():
    features = draw(500, 64)
    targets = quadrant(features)[:, None]
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    weights = []
    for threads, precision in ((1, "highest"), (2, "medium")):
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        with exact_products():
            weights.append(fit_logistic(features, targets, [3], 1e-2))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    assert torch.equal(*weights)


def test_an_accuracy_is_over_the_rows_to_which_a_head_applies():
    classes, targets = (
        torch.tensor([[1, 0, 3], [1, 0, 3], [0, 2, 3]]),
        torch.tensor([[1, -1, -1], [0, 0, -1], [0, 1, -1]]),
    )
    assert accuracies(classes, targets, ("a", "b", "c")) == {"a": 0.6667, "b": 0.5}
