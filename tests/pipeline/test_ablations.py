"""The paper's table 3, its ablations, and its baselines in both spaces are files of configs/experiment.

Each row is what it says.

Tables 6, 7 and figures 5b, 9 of https://arxiv.org/abs/2502.17159. Without normalisation B is multiplied by the sum of
the scales, and what is not scaled is not divided by their sum either, so those rows have a strength of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.report.results import PUBLISHED
from pipeline.config import read_config
from pipeline.program import CONFIGS, compose
from robustmerge.algebra import merge_pairs
from robustmerge.formats.adapter import LoraPair
from robustmerge.method import Method, list_methods, list_steps, read_method
from robustmerge.method_parts import CALIBRATE_RULES, EQUALIZE_RULES, SPECTRUM_RULES
from robustmerge.stage.settings import UserError
from robustmerge.stage.yaml_files import read_yaml
from tests.merge_cases import keep_largest
from tests.plans import make_plan

EXPERIMENTS = CONFIGS / "experiment"
ROWS = {
    "table6": ["nothing", "prune_and_scale"],
    "table7": ["none", "individual_a", "individual_b", "individual_a_b", "inter_parameter_a"],
    "figure5b": ["random", "sign"],
}  # each table ends with RobustMerge itself
N, RANK = 8, 6


def draw_experts() -> dict[str, LoraPair]:
    draw = torch.Generator().manual_seed(3)
    return {
        name: LoraPair(torch.randn(RANK, 40, generator=draw), torch.randn(30, RANK, generator=draw))
        for name in "abcdefgh"
    }


EXPERTS = draw_experts()


def read_row(table: str, row: str, **changes: object) -> Method:
    return read_method(EXPERIMENTS / table / f"{row}.yaml", **changes)


def merge_as_printed(method: Method) -> LoraPair:
    """What a method merges to without the floor that only the released code has."""
    return merge_pairs(EXPERTS, dataclasses.replace(method, scale=dataclasses.replace(method.scale, floor=0.0)))


def pruned(part: str) -> list[Tensor]:
    """Equation 2 for each expert."""
    return [keep_largest(getattr(pair, part), 0.2) for pair in EXPERTS.values()]


def scales(part: str, normalize: bool = True) -> list[Tensor]:
    """Equation 3 for each expert [r], and 4."""
    axis = {"A": 1, "B": 0}[part]
    full = [getattr(pair, part) for pair in EXPERTS.values()]
    S = [x.abs().sum(axis) / kept.abs().sum(axis) for x, kept in zip(full, pruned(part), strict=True)]
    return [s / sum(S) for s in S] if normalize else S


def assert_equal(pair: LoraPair, A: Tensor, B: Tensor) -> None:
    torch.testing.assert_close(pair.A, A)
    torch.testing.assert_close(pair.B, B)


@pytest.mark.parametrize("table", ROWS)
def test_a_table_compares_its_rows_with_robustmerge(table: str) -> None:
    methods = read_config(compose("merge_eval", [f"experiment={table}"])).methods
    assert methods == (*(read_row(table, row) for row in ROWS[table]), read_method("robustmerge"))
    assert len({method.title for method in methods}) == len(methods)
    assert sorted(ROWS[table]) == sorted(file.stem for file in (EXPERIMENTS / table).glob("*.yaml"))
    for method in methods:
        merged = merge_pairs(EXPERTS, method).delta()
        assert torch.isfinite(merged).all()
        assert merged.any()


def test_table_3_has_the_papers_rows_at_their_defaults_and_chooses_and_trains_nothing_on_its_questions() -> None:
    usual, config = (read_config(compose("merge_eval", words)) for words in ([], ["experiment=table3"]))
    published = read_yaml(PUBLISHED, "published values")["table_3_general_benchmarks"]
    rows = ["zero_shot", "multi_task", *(method.name for method in config.methods)]
    assert config.multi_task and rows == list(published["rows"]) and config.strength_grid is None
    assert config.methods == tuple(read_method(method.name) for method in config.methods)
    general = [task for task in config.tasks if task.general]
    assert [task.mirrors for task in general] == published["columns"]
    assert config.seen == usual.seen == config.tasks[: -len(general)]
    assert not any(task.general for task in usual.tasks)
    for task in general:
        counts = config.data(task).counts
        assert (counts.train, counts.val, counts.test) == (0, 0, usual.benchmark.counts.test)


def test_every_folder_of_rows_is_a_table_that_is_tested() -> None:
    assert {folder.name for folder in EXPERIMENTS.iterdir() if folder.is_dir()} == {*ROWS, "spaces", "all_methods"}


def test_table_6_without_any_component_is_task_arithmetic() -> None:
    one, other = (merge_pairs(EXPERTS, m) for m in (read_row("table6", "nothing"), read_method("task_arithmetic")))
    assert torch.equal(one.A, other.A)
    assert torch.equal(one.B, other.B)


def test_table_6_prune_and_scale_leaves_the_scales_as_they_are() -> None:
    B = sum(b * s for b, s in zip(pruned("B"), scales("A", normalize=False), strict=True))
    merged = merge_as_printed(read_row("table6", "prune_and_scale"))
    assert_equal(merged, 0.45 * sum(pruned("A")), 0.45 * B)
    assert sum(scales("A", normalize=False)).min() > N  # by so much at least B is larger than normalised


def test_table_7_none_prunes_and_averages_b() -> None:
    method = read_row("table7", "none")
    assert method.strength == pytest.approx(2 / math.sqrt(N), abs=0.005)
    merged = merge_as_printed(dataclasses.replace(method, strength=2 / math.sqrt(N))).delta()
    torch.testing.assert_close(merged, 4 * (sum(pruned("B")) / N) @ sum(pruned("A")))


@pytest.mark.parametrize(
    ("row", "A_by", "B_by"),
    [
        ("individual_a", "A", None),
        ("individual_b", None, "B"),
        ("individual_a_b", "A", "B"),
        ("inter_parameter_a", "B", None),
        (None, None, "A"),
    ],
)
def test_table_7_says_whose_statistic_scales_which_part(row: str | None, A_by: str | None, B_by: str | None) -> None:
    method = read_row("table7", row) if row else read_method("robustmerge")
    ones = [torch.ones(RANK)] * N
    A = sum(s[:, None] * a for a, s in zip(pruned("A"), scales(A_by) if A_by else ones, strict=True))
    B = sum(b * s for b, s in zip(pruned("B"), scales(B_by) if B_by else ones, strict=True))
    assert_equal(merge_as_printed(method), 2 * A, 2 * B)


def test_figure_5b_random_keeps_a_fifth_of_the_entries_wherever_they_are() -> None:
    method = read_row("figure5b", "random", scale__B=None, strength=1)
    for name, pair in EXPERTS.items():
        merged = merge_pairs({name: pair}, method)
        for x, full in ((merged.A, pair.A), (merged.B, pair.B)):
            assert torch.equal(x, full * (x != 0))
            assert 0.1 < (x != 0).float().mean() < 0.3


def test_figure_5b_sign_keeps_what_agrees_with_the_sum_over_experts() -> None:
    merged = merge_pairs(EXPERTS, read_row("figure5b", "sign", scale__B=None, strength=1))
    for part in "AB":
        xs = [getattr(pair, part) for pair in EXPERTS.values()]
        expected = sum(torch.where(x.sign() == sum(xs).sign(), x, 0.0) for x in xs)
        torch.testing.assert_close(getattr(merged, part), expected)


BASELINES = {"task_arithmetic": "Task Arithmetic", "ties": "TIES", "dare": "DARE", "robustmerge": "RobustMerge"}


def test_the_table_of_spaces_has_every_baseline_on_factors_and_on_products_and_knots_ties() -> None:
    methods = read_config(compose("merge_eval", ["experiment=spaces"])).methods
    assert read_method("knots_ties") in methods
    titles = [f"{title} ({space})" for title in BASELINES.values() for space in ("factors", "products")]
    titles[-1] = "RobustMerge (products, eq. 5)"
    assert [method.title for method in methods if method.name != "knots_ties"] == titles
    assert len({method.name for method in methods}) == len(methods)
    files = {file.stem for file in (EXPERIMENTS / "spaces").glob("*.yaml")}
    assert files == {f"{name}_{space}" for name in BASELINES for space in ("factors", "products")}


@pytest.mark.parametrize("name", BASELINES)
def test_on_factors_a_baseline_is_the_method_of_the_default_table_under_a_title_that_says_so(name: str) -> None:
    row = read_row("spaces", f"{name}_factors")
    assert dataclasses.replace(row, title=read_method(name).title) == read_method(name)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare"])
def test_on_products_a_baseline_is_itself_in_delta_space_at_the_strength_listed_for_it(name: str) -> None:
    row, method = read_row("spaces", f"{name}_products"), read_method(name, space="delta")
    assert dataclasses.replace(row, name=name, title=method.title) == method


def test_the_table_of_all_has_every_method_and_every_step_on_top_of_task_arithmetic() -> None:
    config = read_config(compose("merge_eval", ["experiment=all_methods"]))
    methods = {method.name: method for method in config.methods}
    assert len(methods) == len(config.methods) == len({method.title for method in config.methods})
    assert {*list_methods(), "ties_products", "dare_products", *config.weight_search} <= set(methods)
    plain = methods["task_arithmetic_products"]
    steps = {}
    for file in (EXPERIMENTS / "all_methods").glob("*.yaml"):
        row = methods[file.stem]
        assert dataclasses.replace(plain, name=row.name, title=row.title, paper=row.paper, equalize=row.equalize,
                                   calibrate=row.calibrate, spectrum=row.spectrum, strength=row.strength,
                                   strengths=row.strengths) == row  # fmt: skip
        (steps[file.stem],) = ["over the layers"] if row.is_graded else list_steps(row)
    rules = {"equalize": EQUALIZE_RULES, "calibrate": CALIBRATE_RULES, "spectrum": SPECTRUM_RULES}
    named = {f"{step} {rule}" for step, names in rules.items() for rule in names[1:]}
    assert set(steps.values()) == {*named, "over the layers"}


def test_robustmerge_on_products_is_equation_5_since_rank_rows_cannot_be_scaled_in_a_product() -> None:
    row, printed = read_row("spaces", "robustmerge_products"), read_method("robustmerge_eq5")
    assert dataclasses.replace(row, title=printed.title) == printed
    with pytest.raises(UserError, match="scaling works on A and B apart"):
        read_method("robustmerge", space="delta")


def test_figure_9_merges_nested_subsets_in_an_order_that_the_seed_draws(tmp_path: Path) -> None:
    def merged_experts(seed: int, count: int) -> set[str]:
        return set(make_plan(tmp_path, f"seed={seed}", f"merge_count={count}").merged_experts)

    orders = {}
    for seed in (1, 2, 3):
        chain = [merged_experts(seed, count) for count in range(1, 9)]
        assert [len(names) for names in chain] == list(range(1, 9))
        assert all(fewer < more for fewer, more in itertools.pairwise(chain))
        orders[seed] = tuple(sorted(chain[2]))
    assert len(set(orders.values())) == 3
    whole, every = make_plan(tmp_path), make_plan(tmp_path, "merge_count=8")
    (ties,) = [method for method in whole.config.methods if method.name == "ties"]
    assert whole.merged(ties) == every.merged(ties) != make_plan(tmp_path, "merge_count=7").merged(ties)
    with pytest.raises(UserError, match=r"there are 8 experts to take from, got 9 \(merge_count\)"):
        make_plan(tmp_path, "merge_count=9")
