"""Intervals and paired differences on scores whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.aggregates import AGGREGATES
from eval.report.standing import format_difference
from eval.settings import Bootstrap
from eval.statistics import Resampled, estimate_difference, number_clusters, resample_counts, sum_statistics
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError


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
    interval = Resampled(scores).interval("high", ["rec"])
    mean = scores["high"]["rec"].value
    error = 100 * 1.96 * np.sqrt(mean / 100 * (1 - mean / 100) / 400)
    assert interval.value == pytest.approx(mean)
    assert interval.low < mean < interval.high
    assert (interval.high - interval.low) / 2 == pytest.approx(error, rel=0.1)


def test_about_95_per_cent_of_intervals_hold_the_truth():
    held = 0
    for seed in range(200):
        one = Resampled({"s": {"t": make_score("t", draw(0.6, 200, seed))}}, Bootstrap(400)).interval("s", ["t"])
        held += one.low <= 60 <= one.high
    assert 180 <= held <= 198


def test_an_average_weighs_tasks_equally_however_many_questions_they_have(scores):
    interval = Resampled(scores).interval("low", ["vqav2", "rec"])
    expected = (scores["low"]["vqav2"].value + scores["low"]["rec"].value) / 2
    assert interval.value == pytest.approx(expected)


def test_the_interval_of_an_average_resamples_questions_within_tasks():
    # A task that is all right and one that is all wrong: resampling tasks would give a wide interval.
    scores = {"s": {"a": make_score("a", [1] * 50), "b": make_score("b", [0] * 50)}}
    interval = Resampled(scores).interval("s", ["a", "b"])
    assert (interval.value, interval.low, interval.high) == (50.0, 50.0, 50.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(scores):
    def interval(seed):
        return Resampled(scores, Bootstrap(500, seed)).interval("low", ["rec", "vqav2"])

    assert interval(3) == interval(3) != interval(4)


def test_other_sources_and_their_order_do_not_change_an_interval(scores):
    alone = Resampled({"high": scores["high"]}).interval("high", ["rec", "vqav2"])
    swapped = Resampled(dict(reversed(scores.items()))).interval("high", ["rec", "vqav2"])
    assert alone == swapped == Resampled(scores).interval("high", ["rec", "vqav2"])


def test_chunks_do_not_show(monkeypatch):
    drawn = []
    for rows in (7, 1000):
        monkeypatch.setattr("eval.statistics.CHUNK", rows * 40)
        drawn.append(np.concatenate(list(resample_counts(40, "rec", Bootstrap(50)))))
    assert np.array_equal(*drawn) and drawn[0].shape == (50, 40) and (drawn[0].sum(axis=1) == 40).all()


def cluster(score: Score, pictures) -> Score:
    return dataclasses.replace(score, clusters=dict(zip(score.values, map(str, pictures), strict=True)))


def test_asking_the_same_of_a_picture_twice_says_no_more_than_asking_once():
    values = draw(0.4, 80, 3)
    twice = make_score("t", np.repeat(values, 2))
    once, together, apart = (
        Resampled({"s": {"t": score}}).interval("s", ["t"])
        for score in (make_score("t", values), cluster(twice, np.arange(160) // 2), twice)
    )
    assert once == together
    assert (apart.high - apart.low) / (once.high - once.low) == pytest.approx(0.5**0.5, rel=0.15)


def test_pictures_that_no_two_questions_share_change_nothing(scores):
    alone = {"high": {"rec": cluster(scores["high"]["rec"], range(400))}}
    assert Resampled(alone).interval("high", ["rec"]) == Resampled(scores).interval("high", ["rec"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_however_many_questions_a_picture_has_each_question_counts_the_same(drawn):
    pictures, values = zip(*drawn, strict=True)
    score = cluster(make_score("t", values), pictures)
    interval = Resampled({"s": {"t": score}}, Bootstrap(50)).interval("s", ["t"])
    assert interval.value == pytest.approx(score.value) and interval.low <= interval.value <= interval.high
    numbers = number_clusters([score], list(score.values))
    assert len(set(zip(numbers, pictures, strict=True))) == len(set(numbers)) == len(set(pictures))


def test_scores_that_disagree_on_who_shares_a_picture_are_refused(scores):
    one, other = (cluster(scores["high"]["rec"], np.arange(400) // n) for n in (2, 4))
    with pytest.raises(UserError, match="scores of rec do not agree on which questions share a picture"):
        Resampled({"one": {"rec": one}, "other": {"rec": other}})


def test_what_is_summed_says_all_that_a_score_needs(monkeypatch):
    # A ratio of sums, as BLEU is one: its resamples come from resampled sums, not from the questions' own ratios.
    monkeypatch.setitem(AGGREGATES, "ratio", lambda sums: sums[..., 1] / sums[..., 2])
    matched, guessed = np.random.default_rng(0).integers(1, 9, (2, 60)).astype(float)
    values = make_score("t", matched / guessed)
    pairs = {name: [matched[i], guessed[i]] for i, name in enumerate(values.values)}
    score = dataclasses.replace(values, aggregate="ratio", statistics=pairs)
    resampled = Resampled({"s": {"t": score}}, Bootstrap(100))
    (counts,) = resample_counts(60, "t", Bootstrap(100))
    assert resampled.draws("s", ["t"]) == pytest.approx(counts @ matched / (counts @ guessed))
    assert resampled.point("s", ["t"]) == AGGREGATES["ratio"](sum_statistics(score)) == matched.sum() / guessed.sum()
    plain = dataclasses.replace(values, statistics={name: [value] for name, value in values.values.items()})
    assert np.array_equal(*(Resampled({"s": {"t": one}}).draws("s", ["t"]) for one in (values, plain)))


def test_a_score_that_cannot_be_had_counts_as_missing(scores):
    scores["low"]["rec"] = dataclasses.replace(scores["low"]["rec"], value=None, reason="no Java")
    resampled = Resampled(scores)
    assert not resampled.has("low", ["rec"]) and not resampled.has("low", ["vqav2", "rec"])
    assert resampled.has("high", ["vqav2", "rec"]) and resampled.has("low", ["vqav2"])


def test_the_difference_of_a_source_to_its_copy_is_nothing_with_p_1(scores):
    difference = Resampled({**scores, "copy": scores["high"]}).difference("high", "copy", ["rec", "vqav2"])
    assert (difference.value, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)
    assert not difference.is_significant


def test_a_difference_of_rounding_is_none(scores):
    ulp = {name: value + 1e-12 for name, value in scores["high"]["rec"].values.items()}
    more = {"rec": dataclasses.replace(scores["high"]["rec"], values=ulp)}
    difference = Resampled({"more": more, "high": scores["high"]}).difference("more", "high", ["rec"])
    assert (difference.value, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)
    assert not difference.is_significant


def test_one_question_or_one_picture_makes_no_difference_clear(scores):
    one, other = (make_score("t", [right] * 3) for right in (1, 0))
    for shared in (cluster(one, "aaa"), make_score("t", [1])):
        less = make_score("t", [0] * len(shared.values))
        difference = Resampled({"one": {"t": shared}, "other": {"t": less}}).difference("one", "other", ["t"])
        assert (difference.value, difference.low, difference.high, difference.p) == (100.0, 0.0, 100.0, 1.0)
        assert not difference.is_significant
    assert Resampled({"one": {"t": one}, "other": {"t": other}}).difference("one", "other", ["t"]).is_significant
    with_one = {name: {**by_task, "t": make_score("t", [name == "high"])} for name, by_task in scores.items()}
    assert not Resampled(with_one).difference("high", "low", ["rec", "t"]).is_significant
    assert Resampled(with_one).difference("high", "low", ["rec"]).is_significant


def test_a_large_difference_is_clear_and_its_sign_follows_the_order(scores):
    resampled = Resampled(scores)
    up, down = resampled.difference("high", "low", ["rec"]), resampled.difference("low", "high", ["rec"])
    assert up.is_significant and up.low > 0 and up.p < 0.01
    assert (down.value, down.low, down.high, down.p) == pytest.approx((-up.value, -up.high, -up.low, up.p))


def test_pairing_sees_a_small_difference_that_separate_intervals_would_not():
    base = draw(0.5, 400, 0).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1  # 12 questions more, none less
    resampled = Resampled({s: {"t": make_score("t", values)} for s, values in (("a", base), ("b", better))})
    assert resampled.difference("b", "a", ["t"]).is_significant
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


def test_the_smallest_p_that_resamples_can_tell_is_told_as_a_bound():
    always = estimate_difference(1.0, np.full(1999, 0.01))
    assert always.is_floor and format_difference(always).endswith("p < 0.001")
    once = estimate_difference(1.0, np.array([-0.01] + [0.01] * 1998))
    assert not once.is_floor and format_difference(once).endswith("p = 0.002")
    assert format_difference(estimate_difference(1.0, np.full(99, 0.01))).endswith("p < 0.020")
