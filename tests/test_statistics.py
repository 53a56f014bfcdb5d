"""Intervals and paired differences on scores whose answer is known.

Run: pytest tests/test_statistics.py
"""

from __future__ import annotations

import numpy as np
import pytest

from eval.settings import Bootstrap
from eval.statistics import Resampled, resample_means
from robustmerge.records import Score
from robustmerge.settings import UserError


def make_score(task: str, values) -> Score:
    by_id = {f"q{i}": float(value) for i, value in enumerate(values)}
    n = len(by_id)
    return Score(task, "exact_match", 100 * sum(by_id.values()) / n, n, n, 0, 0, 0, by_id)


def draw(p: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < p


@pytest.fixture
def scores():
    return {
        source: {task: make_score(task, draw(p, n, seed + 7 * n)) for task, n in (("vqav2", 100), ("rec", 400))}
        for source, p, seed in (("low", 0.2, 0), ("high", 0.8, 1))
    }


def test_an_interval_covers_the_mean_and_has_the_width_that_theory_gives(scores):
    found = Resampled(scores).interval("high", ["rec"])
    mean = scores["high"]["rec"].value
    error = 100 * 1.96 * np.sqrt(mean / 100 * (1 - mean / 100) / 400)
    assert found.value == pytest.approx(mean)
    assert found.low < mean < found.high
    assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.1)


def test_about_95_per_cent_of_intervals_hold_the_truth():
    held = 0
    for seed in range(200):
        one = Resampled({"s": {"t": make_score("t", draw(0.6, 200, seed))}}, Bootstrap(400)).interval("s", ["t"])
        held += one.low <= 60 <= one.high
    assert 180 <= held <= 198


def test_an_average_weighs_tasks_equally_however_many_questions_they_have(scores):
    found = Resampled(scores).interval("low", ["vqav2", "rec"])
    expected = (scores["low"]["vqav2"].value + scores["low"]["rec"].value) / 2
    assert found.value == pytest.approx(expected)


def test_the_interval_of_an_average_resamples_questions_within_tasks():
    # A task that is all right and one that is all wrong: resampling tasks would give a wide interval.
    scores = {"s": {"a": make_score("a", [1] * 50), "b": make_score("b", [0] * 50)}}
    found = Resampled(scores).interval("s", ["a", "b"])
    assert (found.value, found.low, found.high) == (50.0, 50.0, 50.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(scores):
    def interval(seed):
        return Resampled(scores, Bootstrap(500, seed)).interval("low", ["rec", "vqav2"])

    assert interval(3) == interval(3) != interval(4)


def test_other_sources_and_their_order_do_not_change_an_interval(scores):
    alone = Resampled({"high": scores["high"]}).interval("high", ["rec", "vqav2"])
    swapped = Resampled(dict(reversed(scores.items()))).interval("high", ["rec", "vqav2"])
    assert alone == swapped == Resampled(scores).interval("high", ["rec", "vqav2"])


def test_chunks_do_not_show(monkeypatch):
    values = draw(0.5, 40, 0)[:, None].astype(float)
    monkeypatch.setattr("eval.statistics.CHUNK", 7 * 40)
    small = resample_means(values, "rec", Bootstrap(50))
    monkeypatch.setattr("eval.statistics.CHUNK", 1000 * 40)
    assert np.array_equal(small, resample_means(values, "rec", Bootstrap(50)))


def test_the_difference_of_a_source_to_its_copy_is_nothing_with_p_1(scores):
    found = Resampled({**scores, "copy": scores["high"]}).difference("high", "copy", ["rec", "vqav2"])
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_clear


def test_a_large_difference_is_clear_and_its_sign_follows_the_order(scores):
    resampled = Resampled(scores)
    up, down = resampled.difference("high", "low", ["rec"]), resampled.difference("low", "high", ["rec"])
    assert up.is_clear and up.low > 0 and up.p < 0.01
    assert (down.value, down.low, down.high, down.p) == pytest.approx((-up.value, -up.high, -up.low, up.p))


def test_pairing_sees_a_small_difference_that_separate_intervals_would_not():
    base = draw(0.5, 400, 0).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1  # 12 questions more, none less
    resampled = Resampled({s: {"t": make_score("t", values)} for s, values in (("a", base), ("b", better))})
    assert resampled.difference("b", "a", ["t"]).is_clear
    assert resampled.interval("b", ["t"]).low < resampled.interval("a", ["t"]).high


def test_sources_scored_on_different_questions_are_refused(scores):
    scores["low"]["rec"] = make_score("rec", [1, 0])
    with pytest.raises(UserError, match="different questions of rec"):
        Resampled(scores)


def test_has_asks_for_every_task(scores):
    del scores["low"]["rec"]
    resampled = Resampled(scores)
    assert resampled.has("low", ["vqav2"]) and resampled.has("high", ["vqav2", "rec"])
    assert not resampled.has("low", ["vqav2", "rec"]) and not resampled.has("low", [])
