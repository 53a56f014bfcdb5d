"""A sweep over one key whose values have an order: a line a method, its ranks, the figure. Needs nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report.assemble import assemble_report
from eval.report.curves import draw_swept
from eval.report.results import CHOSEN, Context, SourceResult, SweptKey, group_results
from eval.report.standing import standing_table
from eval.report.swept_key import swept_tables, zero_shot_ratios
from eval.report.tables import MISSING, Table
from eval.settings import Bootstrap
from eval.statistics import estimate_ranks, rank_values
from tests.eval.test_hostile_text import Structure
from tests.report_cases import SWEPT, TASKS, cell, make_result, make_swept_score, measure

VALUES = {"nothing": 0, "half": 20, "paper": 40}  # value -> what the base knows, in points
KNOWS = SweptKey("model.base.knows", {value: f"knows = {value}" for value in VALUES})


def make_dial(seeds=(1, 2, 3), swept: SweptKey = KNOWS, methods=SWEPT) -> list[SourceResult]:
    """A sweep over what the base knows: RobustMerge gains by it and TIES loses, the others keep their distances."""
    results: list[SourceResult] = []

    def add(source: str, kind: str, title: str, level: float, seed: int | None, value: str, **more) -> None:
        tasks = [task.name for task in TASKS if task.seen or kind != "individual"]
        scores = {task: make_swept_score(task, level / 100, seed or 0, 400) for task in tasks}
        facet = swept.titles[value]
        results.append(SourceResult(source, kind, title, scores, seed=seed, facet=facet, swept=value, **more))

    for value, knows in zip(swept.titles, VALUES.values(), strict=True):
        add("zero_shot", "zero_shot", "Zero-shot", 15 + knows, None, value)
        for seed in seeds:
            add("individual", "individual", "Individual", 80, seed, value)
            for name, (title, better) in methods.items():
                level = 30 + knows / 2 + better * (1 if name not in ("robustmerge", "ties") else knows / 20)
                add(f"merged/{name}", "merged", title, level - 10, seed, value, method=name)
                add(f"merged/{name}", "merged", title, level, seed, value, method=name, variant=CHOSEN)
    return results


def tabulate(results: list[SourceResult], context: Context, swept: SweptKey = KNOWS) -> Table | None:
    groups = group_results(results)
    tables = swept_tables(groups, dataclasses.replace(context, swept=swept), measure(groups, context))
    return tables[0] if tables else None


def test_a_method_is_one_row_at_its_chosen_strength_with_score_and_rank_at_every_value(context):
    results = make_dial()
    table = tabulate(results, context)
    assert [row.title for row in table.rows] == ["Zero-shot", "Individual", *(title for title, _ in SWEPT.values())]
    assert [column.heading for column in table.columns] == [f"Knows = {value}" for value in VALUES for _ in range(2)]
    groups = group_results(results)
    chosen = next(group.title for group in groups if group.title == "PCB, strength chosen (knows = half)")
    interval = measure(groups, context).interval(chosen, ("vqav2", "rec"))
    shown = cell(table, "PCB", "seen_avg_half")
    assert (shown.value, shown.low, shown.seeds_low) == (interval.value, interval.low, interval.seeds.low)
    ranks = [cell(table, "RobustMerge", f"rank_{value}").value for value in VALUES]
    assert ranks == sorted(ranks, reverse=True) and ranks[-1] == 1
    assert cell(table, "Zero-shot", "rank_half").text == MISSING
    for value in VALUES:
        assert sum(cell(table, title, f"rank_{value}").value for title, _ in SWEPT.values()) == 1 + 2 + 3 + 4 + 5
    assert "at the strength chosen on val" in table.title and not any(row.chosen for row in table.rows)


def test_merged_models_are_compared_at_each_value_by_itself(context):
    groups = group_results(make_dial())
    table = standing_table(groups, context, measure(groups, context))
    blocks = [f"Knows = {value}, {at}" for value in VALUES for at in ("default strength", "strength chosen on val")]
    assert [row.block for row in table.rows] == [block for block in blocks for _ in range(len(SWEPT) - 1)]


def test_a_source_that_does_not_depend_on_the_key_stands_at_each_of_its_values(context):
    results = [one for one in make_dial() if one.kind != "zero_shot"]
    scores = {task: make_swept_score(task, 0.2, 0, 400) for task in ("vqav2", "rec", "aokvqa")}
    table = tabulate([*results, SourceResult("zero_shot", "zero_shot", "Zero-shot", scores)], context)
    values = [cell(table, "Zero-shot", f"seen_avg_{value}").value for value in VALUES]
    assert values[0] is not None and len(set(values)) == 1
    assert zero_shot_ratios(table, KNOWS) == {}


def test_what_the_base_knows_is_measured_as_zero_shot_over_individual(context):
    table = tabulate(make_dial(), context)
    ratios = zero_shot_ratios(table, KNOWS)
    assert list(ratios) == list(VALUES)
    for value, ratio in ratios.items():
        zero_shot, individual = (cell(table, title, f"seen_avg_{value}").value for title in ("Zero-shot", "Individual"))
        assert ratio == zero_shot / individual


def test_without_an_order_or_a_second_value_there_is_no_such_table_and_for_one_method_no_rank(context):
    only = {"ties": SWEPT["ties"]}
    assert tabulate(make_dial(), context, None) is None
    at_one = [one for one in make_dial() if one.facet == "knows = half"]
    assert tabulate(at_one, context) is None
    table = tabulate(make_dial(methods=only), context)
    assert [column.title for column in table.columns] == ["Seen avg"] * 3


def test_a_strength_is_marked_where_not_all_are_chosen(context):
    results = [one for one in make_dial() if one.method != "pcb" or one.variant != CHOSEN]
    table = tabulate(results, context)
    assert {row.title for row in table.rows if row.chosen} == {t for n, (t, _) in SWEPT.items() if n != "pcb"}
    assert "chosen on val" not in table.title


def test_a_rank_holds_over_the_seeds_that_all_methods_have(context):
    """Of two methods that change places with the seed, the range of both holds both places."""
    seeds = {1: (100, 20), 2: (20, 90)}
    results = [
        make_result(
            f"merged/{name}", "merged", name, {"vqav2": right[i], "rec": right[i]}, seed=seed, facet=facet, swept=value
        )
        for value, facet in KNOWS.titles.items()
        for seed, right in seeds.items()
        for i, name in enumerate(("one", "other"))
    ]
    table = tabulate(results, context)
    assert [cell(table, name, "rank_half").text for name in ("one", "other")] == ["1 (1–2)", "2 (1–2)"]
    lacking = [one for one in results if one.title == "one" or one.seed == 1]
    texts = {row.title: row.cells[1].text for row in tabulate(lacking, context).rows}
    assert texts == {"one": "1 (1–1)", "other [1 of 2 seeds]": "2 (2–2)"}


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=1, max_size=6), st.integers(0, 9))
def test_ranks_are_shared_out_whatever_the_values_and_follow_their_order(values, seed):
    draws = np.random.default_rng(seed).choice([0.0, 0.1, 0.25], (len(values), 40))
    ranks = estimate_ranks(values, draws)
    assert sum(rank.value for rank in ranks) == pytest.approx(len(values) * (len(values) + 1) / 2)
    assert all(1 <= rank.low <= rank.value <= rank.high <= len(values) for rank in ranks)
    for value, rank in zip(values, ranks, strict=True):
        assert rank.value == np.mean([i for i, v in enumerate(sorted(values, reverse=True), 1) if v == value])
    order = np.random.default_rng(seed).permutation(len(values))
    assert estimate_ranks(np.array(values)[order], draws[order]) == [ranks[i] for i in order]


def test_the_range_of_a_rank_leaves_out_the_rarest_fortieth_on_either_side():
    draws = np.tile([[0.5], [0.4]], 1000)
    draws[1, :20] = 0.6
    assert [(rank.low, rank.high) for rank in estimate_ranks([0.5, 0.4], draws)] == [(1, 1), (2, 2)]
    draws[1, :30] = 0.6
    assert [(rank.low, rank.high) for rank in estimate_ranks([0.5, 0.4], draws)] == [(1, 2), (1, 2)]
    assert rank_values(np.array([[0.1 + 0.2], [0.3]])).tolist() == [[1.5], [1.5]]  # equal but for the rounding


def test_the_report_has_a_section_with_a_figure_against_the_key(plain_context):
    context = dataclasses.replace(plain_context, swept=KNOWS, bootstrap=Bootstrap(draws=100))
    report = assemble_report(make_dial(), context)
    text = report.files["report.md"].decode()
    section = text.split("## Against `model.base.knows`")[1].split("\n## ")[0]
    assert 'src="figures/swept.svg" alt="Average over tasks' in section
    assert "± the deviation over seeds" in section and "each one of these training seeds with a resample" in section
    assert "zero-shot over individual: nothing 0." in section
    assert "| Source | Knows = nothing: Seen avg | Knows = nothing: Rank |" in section
    assert "| Source | Knows = nothing: Unseen avg | Knows = nothing: Rank |" in section
    for name in ("swept", "swept_unseen"):
        assert text.count(f"figures/{name}.svg") == 1
        assert {f"tables/{name}.tex", f"tables/{name}.csv", f"figures/{name}.png"} <= set(report.files)
    table = report.tables["swept"]
    again = draw_swept(table, KNOWS, zero_shot_ratios(table, KNOWS))
    assert (again.svg, again.png) == (report.files["figures/swept.svg"], report.files["figures/swept.png"])


def test_the_figure_names_methods_values_and_noise(context):
    table = tabulate(make_dial(), context)
    drawn = draw_swept(table, KNOWS, {"half": 0.3}).svg.decode()
    for label in ("RobustMerge", "Zero-shot", "half", "zero-shot / individual 0.30", "model.base.knows"):
        assert f"<!-- {label} -->" in drawn, label
    assert "Thin: 95 % over seeds" in drawn and "Rank" in drawn
    of_one = draw_swept(
        tabulate(make_dial(seeds=(1,), methods={"ties": SWEPT["ties"]}), context), KNOWS, {}
    ).svg.decode()
    assert "over seeds" not in of_one and "Rank" not in of_one and "zero-shot / individual" not in of_one


@pytest.mark.usefixtures("undrawn")
def test_the_words_of_a_sweep_are_text_and_no_markup(plain_context):
    pages = []
    for key, words in (("a.key", ("one", "other", "third")), ("a.<b>|`$x$", ("<i>", "a|b", "[x](y)"))):
        swept = SweptKey(key, {word: f"{key} = {word}" for word in words})
        context = dataclasses.replace(plain_context, swept=swept, bootstrap=Bootstrap(draws=20))
        report = assemble_report(make_dial(seeds=(1,), swept=swept, methods={"ties": SWEPT["ties"]}), context)
        pages.append(Structure(report.files["report.html"].decode()))
    assert pages[0].tags == pages[1].tags and pages[0].targets == pages[1].targets
