"""Our averages beside the paper's: the rows, the values, and how the orders of methods compare. Needs nothing."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from eval.report.beside_paper import beside_table, describe_orders
from eval.report.published import name_rows
from eval.report.results import CHOSEN, PUBLISHED, Context, Search, SourceResult, group_results
from eval.report.standing import standing_table
from eval.report.tables import MISSING, Table
from eval.settings import PaperTable
from robustmerge.stage.settings import UserError
from tests.report_cases import cell, make_result, make_task, measure

PAPER = yaml.safe_load(PUBLISHED.read_text())
TABLE_2 = PAPER["table_2_mm_mergebench"]
TASKS = tuple(
    make_task(name, title, kind == "seen") for kind in ("seen", "unseen") for name, title in TABLE_2[kind].items()
)
MERGED = ("task_arithmetic", "dare", "ties", "robustmerge")


@pytest.fixture(scope="module")
def twelve(plain_context) -> Context:
    """The facts of a report with all tasks of the paper."""
    return dataclasses.replace(plain_context, tasks=TASKS)


def make_table(context: Context, *results: SourceResult) -> Table | None:
    groups = group_results(results)
    return beside_table(groups, context, measure(groups, context))


def merged(method: str, right: int, **more) -> SourceResult:
    return make_result(f"merged/{method}", "merged", method.title(), {task.name: right for task in TASKS}, **more)


def test_the_printed_average_stands_beside_ours_and_what_the_paper_lacks_has_no_row(twelve):
    table = make_table(twelve, *(merged(name, 60 - i) for i, name in enumerate((*MERGED, "mine"))))
    assert {row.title for row in table.rows} == {name.title() for name in MERGED}
    for name in MERGED:
        for average in ("seen_avg", "unseen_avg"):
            shown = cell(table, name.title(), f"{average}_published")
            assert (shown.value, shown.text) == (
                TABLE_2["rows"][name][average],
                f"{TABLE_2['rows'][name][average]:.2f}",
            )
    assert cell(table, "Ties", "seen_avg").value == pytest.approx(100 * 58 / 120)
    assert "published" in table.title and all("Published" in c.title for c in table.columns if not c.is_average)


def test_an_average_over_other_tasks_than_the_papers_is_never_set_beside_it(twelve):
    fewer = dataclasses.replace(twelve, tasks=TASKS[1:])
    assert cell(make_table(fewer, *(merged(name, 50) for name in MERGED)), "Ties", "seen_avg_published").text == MISSING
    assert make_table(dataclasses.replace(twelve, tasks=TASKS[1:-1]), *(merged(name, 50) for name in MERGED)) is None


def test_a_changed_method_is_not_the_papers(twelve):
    results = [merged("ties", 50, overrides={"prune.density": "0.5"}), merged("dare", 40), merged("robustmerge", 30)]
    assert {row.title for row in make_table(twelve, *results).rows} == {"Dare", "Robustmerge"}


def test_searched_weights_are_not_the_papers_method(twelve):
    search = Search({"rec": 1.0}, 1.0, 60.0, 50.0, tried=21)
    best = [merged(name, 70, variant=CHOSEN, search=search) for name in ("ties", "robustmerge")]
    searched = [dataclasses.replace(one, source=f"{one.source}@searched", title="X") for one in best]
    groups = group_results([*(merged(name, 50, variant=CHOSEN) for name in MERGED), *searched])
    estimates = measure(groups, twelve)
    titles = {f"{name.title()}, strength chosen" for name in MERGED}
    assert {row.title for row in beside_table(groups, twelve, estimates).rows} == titles
    assert {name: name_rows(groups, twelve)[name] for name in MERGED} == {name: name.title() for name in MERGED}
    assert standing_table(groups, twelve, estimates) is not None


def test_the_orders_are_told_and_blocks_of_one_order_stand_together(twelve):
    best_first = ("robustmerge", "task_arithmetic", "dare", "ties")
    as_printed = [merged(name, 60 - i, facet="shared A") for i, name in enumerate(best_first)]
    turned = [merged(name, 60 + i, facet="independent A") for i, name in enumerate(best_first)]
    table = make_table(twelve, *as_printed, *turned)
    there, here = (", ".join(name.title() for name in names) for names in (best_first, reversed(best_first)))
    sentence = f"in the paper {there}; here the same (shared A) | {here} (independent A)"
    assert describe_orders(table) == [("Seen average", sentence), ("Unseen average", sentence)]
    assert describe_orders(make_table(twelve, *(dataclasses.replace(one, facet="") for one in turned))) == [
        (f"{split} average", f"in the paper {there}; here {here}") for split in ("Seen", "Unseen")
    ]


@pytest.mark.parametrize("name", ["table_6_components", "table_7_scaling", "table_9_dora"])
def test_an_experiment_is_shown_beside_its_own_table(twelve, name):
    rows = {f"row{i}": printed for i, printed in enumerate(PAPER[name]["rows"])}
    context = dataclasses.replace(twelve, paper_table=PaperTable(name, rows))
    table = make_table(context, *(merged(row, 50) for row in rows))
    assert f"table {name.split('_')[1]} of the paper" in table.title
    for row, printed in rows.items():
        assert cell(table, row.title(), "seen_avg_published").value == PAPER[name]["rows"][printed]["seen_avg"]


def test_a_table_that_the_paper_lacks_is_named(twelve):
    with pytest.raises(UserError, match=r"paper\.yaml is not a file of published values with table_99"):
        make_table(dataclasses.replace(twelve, paper_table=PaperTable("table_99")), merged("ties", 50))
