"""Means, intervals and differences over several training seeds, in tables and reports. Needs nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eval.report.assemble import assemble_report
from eval.report.results import group_results
from eval.report.tables import MISSING, main_table, seeds_table
from eval.statistics import T_QUANTILES, Resampled, spread_over_seeds
from tests.report_cases import SWEPT, both, cell, make_result, make_results, make_score, make_seeds, measure

SEEDS = (1, 2, 3, 4, 5)
SEEN = ["vqav2", "rec"]


def test_the_quantiles_are_those_of_students_t():
    for freedom in (2, 4, 9, 30):
        quantile = T_QUANTILES[freedom - 2]
        at = np.linspace(0, quantile, 20001)
        density = (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
        beyond = quantile / np.linspace(1e-9, 1, 400001)[1:]  # substitution x = q / u, so that the tail is finite
        tail = (1 + beyond**2 / freedom) ** (-(freedom + 1) / 2) * beyond**2 / quantile
        inside, outside = np.trapezoid(density, at), tail.mean()
        assert inside / (inside + outside) == pytest.approx(0.95, abs=2e-4)


def test_about_95_per_cent_of_intervals_over_five_seeds_hold_the_truth():
    values_by_draw = np.random.default_rng(0).standard_normal((2000, 5))
    spreads = [spread_over_seeds(list(values)) for values in values_by_draw]
    assert 0.935 < np.mean([one.low < 0 < one.high for one in spreads]) < 0.965


def test_two_seeds_have_a_deviation_but_no_interval_and_one_has_neither():
    two, one = spread_over_seeds([1.0, 3.0]), spread_over_seeds([2.0])
    assert (two.mean, two.low, two.is_significant) == (2.0, None, False) and two.deviation == pytest.approx(2**0.5)
    assert (one.mean, one.deviation, one.low) == (2.0, None, None)


def test_results_that_differ_in_the_seed_only_become_one_row(sweep):
    rows = group_results(sweep)
    assert len(rows) == 1 + 2 + 1 + 2 * 2 * len(SWEPT) == 24
    assert [len(row.results) for row in rows] == [1] + [5] * 23
    assert len({row.title for row in rows}) == 24
    titles = [row.title for row in rows]
    assert titles[:4] == ["Zero-shot", "Individual (independent A)", "Individual (shared A)", "Multi-task"]
    assert titles[-1] == "RobustMerge, strength chosen (shared A)"
    assert list(dict.fromkeys(row.block for row in rows)) == [
        "",
        "Independent A, default strength",
        "Independent A, strength chosen on val",
        "Shared A, default strength",
        "Shared A, strength chosen on val",
    ]


def test_a_value_is_the_mean_over_seeds_and_behind_it_stands_their_deviation(context):
    results = make_seeds("dare", "DARE", {1: both(30), 2: both(60), 3: both(90)})
    rows = group_results(results)
    shown = cell(main_table(rows, context, measure(rows, context)), "DARE", "seen_avg")
    assert (shown.value, shown.deviation) == pytest.approx((50.0, 25.0))
    assert shown.text.startswith("50.0 (") and shown.text.endswith(") ± 25.0")
    assert shown.low < 50 < shown.high


def test_the_interval_over_questions_resamples_what_each_scored_on_average_over_the_seeds(context):
    rows = group_results(make_seeds("dare", "DARE", {1: both(30), 2: both(60), 4: both(90)}))
    nothing = make_score("rec", 0)
    means = {name: ((i < 30) + (i < 60) + (i < 90)) / 3 for i, name in enumerate(nothing.values)}
    mean = dataclasses.replace(nothing, values=means)
    expected = Resampled({"mean": {"rec": mean}}, context.bootstrap).interval("mean", ["rec"])
    interval = measure(rows, context).interval(rows[0].title, ["rec"])
    assert (interval.value, interval.low, interval.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_differences_are_paired_over_seeds(context):
    levels = {seed: 10 * seed for seed in SEEDS}  # what moves both by the same says nothing of their difference
    rows = group_results(
        make_seeds("ties", "TIES", {seed: both(level) for seed, level in levels.items()})
        + make_seeds("robustmerge", "RobustMerge", {seed: both(level + 12) for seed, level in levels.items()})
    )
    estimates = measure(rows, context)
    difference = estimates.difference(rows[1].title, rows[0].title, SEEN)
    assert estimates.interval(rows[0].title, SEEN).seeds.deviation > 10
    assert (difference.seeds.mean, difference.seeds.low, difference.seeds.high) == pytest.approx((10.0, 10.0, 10.0))
    assert difference.is_significant and difference.value == pytest.approx(10.0)


@pytest.mark.usefixtures("undrawn")
def test_a_lead_that_another_training_may_turn_is_neither_bold_nor_clear(plain_context):
    rights = {1: 95, 2: 20, 3: 95, 4: 50, 5: 60}
    rows = group_results(
        make_seeds("ties", "TIES", {seed: both(50) for seed in SEEDS})
        + make_seeds("robustmerge", "RobustMerge", {seed: both(right) for seed, right in rights.items()})
    )
    estimates = measure(rows, plain_context)
    difference = estimates.difference(rows[1].title, rows[0].title, SEEN)
    assert (
        difference.is_significant_over_questions
        and not difference.seeds.is_significant
        and not difference.is_significant
    )
    assert not any(one.bold for row in main_table(rows, plain_context, estimates).rows for one in row.cells)
    text = assemble_report([point for row in rows for point in row.results], plain_context).files["report.md"].decode()
    assert "is outside the noise of the questions, but **within** that of the seeds" in text


def test_a_row_with_fewer_seeds_says_so_and_is_compared_over_those_that_both_have(context):
    rows = group_results(
        make_seeds("ties", "TIES", {seed: both(10 * seed) for seed in SEEDS})
        + make_seeds("robustmerge", "RobustMerge", {seed: both(10 * seed) for seed in (3, 4, 5)})
    )
    assert [row.title for row in rows] == ["TIES", "RobustMerge [3 of 5 seeds]"]
    difference = measure(rows, context).difference(rows[1].title, rows[0].title, SEEN)
    assert (difference.value, difference.seeds.n, difference.seeds.high) == (0.0, 3, 0.0)


def test_rows_that_share_no_seed_are_never_significantly_different(context):
    results = make_seeds("ties", "TIES", {1: both(10), 2: both(10), 3: both(10)})
    results += make_seeds("robustmerge", "RobustMerge", {4: both(90), 5: both(90), 6: both(90)})
    rows = group_results(results)
    difference = measure(rows, context).difference(rows[1].title, rows[0].title, SEEN)
    assert difference.is_significant_over_questions and not difference.is_significant and difference.seeds.n == 0


def test_a_lead_over_one_shared_seed_is_not_clear_where_there_are_several(context):
    results = make_seeds("ties", "TIES", {1: both(10), 2: both(10), 3: both(10)})
    rows = group_results(results + make_seeds("robustmerge", "RobustMerge", {3: both(90)}))
    difference = measure(rows, context).difference(rows[1].title, rows[0].title, SEEN)
    assert difference.is_significant_over_questions and not difference.is_significant and difference.seeds.n == 1
    assert not any(one.bold for row in main_table(rows, context, measure(rows, context)).rows for one in row.cells)


@pytest.mark.usefixtures("undrawn")
def test_a_source_ahead_only_by_seeds_that_the_other_lacks_has_no_lead(plain_context):
    results = make_seeds("ties", "TIES", {1: both(120), 2: both(120), 3: both(60), 4: both(60), 5: both(60)})
    results += make_seeds("robustmerge", "RobustMerge", {seed: both(72) for seed in (3, 4, 5)})
    rows = group_results(results)
    estimates = measure(rows, plain_context)
    difference = estimates.difference(rows[0].title, rows[1].title, SEEN)
    assert difference.is_significant and difference.value == pytest.approx(-10)
    assert not any(one.bold for row in main_table(rows, plain_context, estimates).rows for one in row.cells)
    text = assemble_report(results, plain_context).files["report.md"].decode()
    assert "TIES is first of the merged models with 70.0 %" in text and "is **none** over the seeds that both" in text


@pytest.mark.usefixtures("undrawn")
def test_such_a_source_is_not_marked_as_clearly_ahead_among_many_blocks(plain_context):
    ahead = {1: both(120), 2: both(120), 3: both(60), 4: both(60), 5: both(60)}
    results = [
        result
        for block in range(5)
        for result in (
            *make_seeds("ties", "TIES", ahead, facet=f"merge count = {block}"),
            *make_seeds(
                "robustmerge", "RobustMerge", {seed: both(72) for seed in (3, 4, 5)}, facet=f"merge count = {block}"
            ),
        )
    ]
    text = assemble_report(results, plain_context).files["report.md"].decode()
    assert "by merge count: TIES: 0, 1, 2, 3, 4." in text


def test_the_zero_shot_base_stands_beside_every_seed(context):
    zero = make_result("zero_shot", "zero_shot", "Zero-shot", both(20))
    rows = group_results([zero, *make_seeds("dare", "DARE", {1: both(30), 2: both(40), 3: both(50)})])
    estimates = measure(rows, context)
    assert estimates.difference(rows[1].title, rows[0].title, SEEN).seeds.n == 3
    seeds = seeds_table(rows, context, estimates)
    assert [cell(seeds, "Zero-shot", key).text for key in ("seen_seed_1", "seen_mean", "seen_deviation")] == [
        MISSING,
        "16.7",
        MISSING,
    ]
    shown = [cell(seeds, "DARE", f"unseen_{key}").value for key in ("seed_1", "seed_2", "seed_3", "mean", "deviation")]
    assert shown == pytest.approx([25, 100 / 3, 125 / 3, 100 / 3, 25 / 3])


@pytest.mark.usefixtures("undrawn")
def test_one_seed_makes_the_same_report_as_before_there_were_seeds(plain_context):
    named = [dataclasses.replace(one, seed=None if one.kind == "zero_shot" else 7) for one in make_results()]
    seeded, plain = (assemble_report(results, plain_context) for results in (named, make_results()))
    assert "seeds" not in seeded.tables and "figures/standing.svg" not in seeded.files
    assert seeded.files["tables/main.csv"] == plain.files["tables/main.csv"]
    assert seeded.files["figures/tasks.svg"] == plain.files["figures/tasks.svg"]
