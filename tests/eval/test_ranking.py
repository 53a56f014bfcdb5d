"""The ranking of many merged models, and what each of them costs. Needs nothing."""

from __future__ import annotations

import json

import pytest

from eval.report import ranking
from eval.report.assemble import assemble_report
from eval.report.ranking import MANY, ranking_table, read_costs
from eval.report.results import group_results
from robustmerge.method import list_methods
from tests.report_cases import both, make_results, make_seeds, measure

RIGHT = {name: 30 + 5 * place for place, name in enumerate(list_methods()[:MANY])}


def make_many():
    results = []
    for name, right in RIGHT.items():
        results += make_seeds(name, name.title(), {seed: both(right + seed) for seed in (1, 2)})
    return results


def test_many_merged_models_are_ranked_by_their_seen_average_and_stand_beside_their_costs(plain_context):
    groups = group_results(make_many())
    table = ranking_table(groups, plain_context, measure(groups, plain_context))
    assert [row.label for row in table.rows] == [name.title() for name in reversed(RIGHT)]
    keys = [column.key for column in table.columns]
    assert keys == ["seen_avg", "rank_seen_avg", "unseen_avg", "rank_unseen_avg", "cpu"]
    costs = read_costs()
    for place, (name, row) in enumerate(zip(reversed(RIGHT), table.rows, strict=True), start=1):
        cells = dict(zip(keys, row.cells, strict=True))
        assert cells["rank_seen_avg"].low <= place == cells["rank_seen_avg"].value <= cells["rank_seen_avg"].high
        assert cells["cpu"].value == costs.get(name)
        assert cells["seen_avg"].low < cells["seen_avg"].value < cells["seen_avg"].high


def test_a_row_of_the_costs_that_failed_has_none(tmp_path, monkeypatch):
    measured = {"name": "ties", "cpu": 3.0, "changes": {}, "workers": 1}
    (tmp_path / "table.json").write_text(json.dumps({"rows": [measured, {"name": "mine", "failed": "it ran out"}]}))
    monkeypatch.setattr(ranking, "COSTS", tmp_path / "table.json")
    assert read_costs() == {"ties": 3.0}


def test_a_changed_method_has_no_cost(plain_context):
    results = make_many()
    changed = make_seeds("ties", "TIES", {1: both(99)}, overrides={"prune.density": 0.5})
    groups = group_results([*results, *changed])
    first = ranking_table(groups, plain_context, measure(groups, plain_context)).rows[0]
    assert (first.label, first.cells[-1].value) == ("TIES (prune.density=0.5) [1 of 2 seeds]", None)


@pytest.mark.usefixtures("undrawn")
def test_the_ranking_is_a_section_with_a_figure_where_there_are_many_and_none_where_there_are_few(plain_context):
    report = assemble_report(make_many(), plain_context)
    assert {"tables/ranking.csv", "figures/ranking.svg"} <= set(report.files)
    text = report.files["report.md"].decode()
    assert "## Ranking" in text and "Eight experts at 7B" in text
    few = assemble_report(make_results(), plain_context)
    assert "## Ranking" not in few.files["report.md"].decode()
