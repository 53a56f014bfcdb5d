"""The findings: their quantities by laws, and the page on real plans with experts drawn here. Needs nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import Plan
from pipeline.program import compose
from pipeline.sweep import make_plans
from pipeline.tools.findings.figures import draw_findings
from pipeline.tools.findings.measure import measure, name_groups
from pipeline.tools.findings.page import compose as page_blocks
from pipeline.tools.findings.page import spread, write
from pipeline.tools.findings.relations import Findings, chance_level, rank_correlation, relate
from robustmerge.analysis.retention import (
    cross_terms,
    has_cross_terms,
    inner_product,
    inner_products,
    measure_retention,
    open_update,
)
from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.merging import merge
from robustmerge.method import Method, read_method
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, address_of, write_expert
from tests.smoke_run import SmokeRun

TASKS = ("iconqa", "rec", "vizwiz", "vqav2")
MODULES = {"layers.0.q_proj": (32, 40), "layers.1.q_proj": (28, 36)}  # d_out, d_in
METHODS = ("task_arithmetic", "ties", "robustmerge")


def random_pair(d_out: int, d_in: int, seed: int, rank: int = 2) -> LoraPair:
    source = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, d_in, generator=source), torch.randn(d_out, rank, generator=source))


def orthogonal_pairs(n: int) -> list[LoraPair]:
    """Updates that share no direction, of different norms."""
    eye = torch.eye(2 * n)
    return [LoraPair(eye[2 * i : 2 * i + 2], (i + 1.0) * eye[:, 2 * i : 2 * i + 2]) for i in range(n)]


def kept_of(experts: list[LoraPair], merged: LoraPair | torch.Tensor):
    (kept,) = measure_retention(inner_products(experts, [merged]))
    return kept


# --- what is left of an expert ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_inner_products_of_factors_are_those_of_the_dense_updates(seed, rank, other_rank):
    one, other = random_pair(6, 8, seed, rank), random_pair(6, 8, seed + 1, other_rank)
    exact = float((one.delta().double() * other.delta().double()).sum())
    for x in (one, one.delta()):
        for y in (other, other.delta()):
            assert inner_product(x, y) == pytest.approx(exact, rel=1e-4, abs=1e-4)


def test_a_sum_of_orthogonal_updates_leaves_its_weight_of_each():
    experts = orthogonal_pairs(3)
    kept = kept_of(experts, 0.5 * sum(pair.delta() for pair in experts))
    squares = torch.tensor([2.0, 8.0, 18.0], dtype=torch.float64)
    torch.testing.assert_close(kept.share, torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(kept.interference, ((28 - squares) / squares).sqrt())
    assert kept.norm == pytest.approx(0.5 * 28**0.5)
    assert kept.outside == pytest.approx(0, abs=1e-6)


def test_a_longer_update_leaves_more_of_an_expert_and_interferes_as_much():
    experts, merged = [random_pair(9, 12, i) for i in range(3)], random_pair(9, 12, 9, rank=5)
    once, thrice = kept_of(experts, merged), kept_of(experts, 3 * merged.delta())
    torch.testing.assert_close(thrice.share, 3 * once.share, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(thrice.interference, once.interference, rtol=1e-3, atol=1e-6)
    assert (thrice.norm, thrice.outside) == pytest.approx((3 * once.norm, once.outside), rel=1e-5)


def test_an_expert_itself_is_left_whole_and_a_stranger_is_of_no_expert():
    *experts, stranger = orthogonal_pairs(3)
    itself, other = kept_of(experts, experts[0]), kept_of(experts, stranger)
    assert (float(itself.share[0]), float(itself.distance[0]), itself.outside) == pytest.approx((1, 0, 0), abs=1e-6)
    assert (float(other.share[0]), float(other.interference[0]), other.outside) == (0, math.inf, 1)


def test_modules_add_up_to_one_long_vector():
    pairs = [[random_pair(5, 6, 10 * i + m) for m in range(2)] for i in range(3)]
    one, other = (inner_products([x[m] for x in pairs], [pairs[0][1]]) for m in range(2))
    long = [torch.cat([p.delta().flatten() for p in x])[None] for x in pairs]
    merged = torch.cat([pairs[0][1].delta().flatten()] * 2)[None]
    for summed, exact in zip(one.plus(other), inner_products(long, [merged]), strict=True):
        torch.testing.assert_close(summed, exact, rtol=1e-4, atol=1e-4)


# --- cross terms --------------------------------------------------------------------------------------------------


def plain(**changes) -> Method:
    return Method(name="plain", **{"strength": 1.0, **changes})


def test_cross_terms_are_what_summing_factors_adds():
    experts = {f"e{i}": random_pair(9, 12, i) for i in range(3)}
    sum_of_updates = sum(pair.delta() for pair in experts.values())
    whole = sum(p.B for p in experts.values()) @ sum(p.A for p in experts.values())
    crossed = cross_terms(experts, plain(), "m")
    assert crossed.weight == pytest.approx(float((whole - sum_of_updates).norm() / sum_of_updates.norm()), rel=1e-4)
    assert crossed == pytest.approx(cross_terms(experts, plain(strength=0.3), "m"))


def test_cross_terms_of_experts_that_share_A_only_lengthen_the_sum():
    A = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    shared = {f"e{i}": LoraPair(A, random_pair(9, 12, i).B) for i in range(4)}
    crossed = cross_terms(shared, plain(), "m")
    assert (crossed.weight, crossed.cosine) == pytest.approx((3, 1), rel=1e-4)
    alone = cross_terms({"e0": shared["e0"]}, plain(), "m")
    assert alone.weight == 0


def test_only_sums_of_factors_have_cross_terms():
    assert [name for name in METHODS if has_cross_terms(read_method(name))] == ["task_arithmetic", "robustmerge"]
    assert not has_cross_terms(plain(space="delta"))
    assert not has_cross_terms(None)


# --- rank correlation ---------------------------------------------------------------------------------------------


def test_rank_correlation_sees_order_alone():
    x = [0.1, 5.0, 2.0, 9.0, 7.0]
    assert rank_correlation(x, [math.exp(v) for v in x]) == pytest.approx(1)
    assert rank_correlation(x, [-v for v in x]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # equal values share a rank
    assert rank_correlation([1, 2, 3, math.inf], [1, 2, 3, 4]) == pytest.approx(1)


def test_rank_correlation_of_few_or_of_equal_values_is_undefined():
    assert math.isnan(rank_correlation([1, 2, 3], [1, 2, 3]))
    assert math.isnan(rank_correlation([1, 2, 3, math.nan], [1, 2, 3, 4]))
    assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]))


def test_chance_orders_fewer_things_more_often():
    assert 0.6 < chance_level(10) < 0.7  # tables of Spearman's give 0.648
    assert chance_level(5) > chance_level(10) > chance_level(40)
    assert math.isnan(chance_level(3))


def test_a_spread_has_a_deviation_where_there_is_one():
    assert spread([1.0, 2.0]) == "1.50 ± 0.71"
    assert spread([1.5]) == spread([1.5, 1.5]) == "1.50"
    assert spread([]) == spread([math.nan]) == "—"
    assert spread([-0.001]) == "0.00"
    assert spread([1.0, 2.0], "+.1f") == "+1.5 ± 0.7"
    assert spread([1.0, math.inf]) == "inf"


# --- from plans to the page ---------------------------------------------------------------------------------------


def compose_plan(root: Path, *words: str) -> Plan:
    """The real plan of a command line, on four tasks and three methods of the tiny model."""
    names = [f"tasks=[{','.join(TASKS)}]", f"methods=[{','.join(METHODS)}]", f"paths.runs={root}"]
    point = compose("findings", ["profile=smoke", "logger=none", *names, *words])
    (plan,) = make_plans([{**point, "overrides": list(words)}])
    return plan


def finish_point(plan: Plan) -> None:
    """Everything that a plan needs: experts drawn at random, merged for real, and scores that are set by hand."""
    start = {m: random_pair(*shape, seed=plan.config.seed).A for m, shape in MODULES.items()}
    for i, address in enumerate([*plan.experts.values(), plan.multi_task]):
        pairs = {m: random_pair(*shape, seed=100 * plan.config.seed + i) for m, shape in MODULES.items()}
        shared = plan.config.peft.shared_a_init
        pairs = {m: LoraPair(start[m] if shared else p.A, (1 + i) * p.B) for m, p in pairs.items()}
        run_stage(address, lambda path, pairs=pairs: write_adapter(path, pairs), **QUIET)
    for by_factor in plan.candidates.values():
        for factor, source in by_factor.items():
            for val_set in source.eval_sets:
                write_score(plan.score(source, val_set), val_set.task.name, {0.5: 40.0, 1.0: 30.0}[factor])
    heights = {"zero_shot": 10, "expert": 90, "multi_task": 80}
    for source in plan.sources:
        if source.method is not None:
            merge(source.address, source.method, {name: one.path for name, one in plan.experts.items()}, **QUIET)
        height = heights.get(source.kind) or 20 + 9 * METHODS.index(source.method.name)
        for test_set in source.eval_sets:
            name = test_set.task.name
            write_score(plan.score(source, test_set), name, height + 3.0 * TASKS.index(name) + plan.config.seed)


def write_adapter(folder: Path, pairs: dict[str, LoraPair]) -> None:
    folder.rmdir()
    write_expert(folder, pairs)


def write_score(address: Address, task: str, value: float) -> None:
    score = Score(task, "m", value, 1, 1, 0, 0, 0, {"q": value / 100})
    run_stage(address, lambda path: path.write_text(json.dumps(dataclasses.asdict(score))) and None, **QUIET)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    root = tmp_path_factory.mktemp("findings")
    points = [(f"seed={seed}", f"peft.shared_a_init={shared}") for shared in ("false", "true") for seed in (1, 2)]
    plans = [compose_plan(root, *words) for words in points]
    for plan in plans:
        finish_point(plan)
    return plans


@pytest.fixture(scope="module")
def findings(plans) -> Findings:
    return measure(plans)


def test_every_point_is_measured_once(plans, findings):
    assert len(findings.experts) == 4 * len(TASKS)
    assert len(findings.merged) == 4 * (2 * len(METHODS) + 1)
    assert len(findings.kept) == len(findings.merged) * len(TASKS)
    assert measure([plans[0], plans[0]]) == measure([plans[0]])


def test_both_strengths_of_a_method_have_its_name_and_a_variant_of_their_own(findings):
    variants = {(row["method"], row["variant"]) for row in findings.merged if row["kind"] == "merged"}
    titles = [read_method(name).title for name in METHODS]
    assert variants == {(title, variant) for title in titles for variant in ("", "chosen")}


def test_norms_at_the_strengths_tried_are_multiples_of_the_default_one(findings):
    assert len(findings.grid) == 4 * len(METHODS) * 2
    lengths = {(r["group"], r["seed"], r["method"], r["variant"]): r["norm_over_mean"] for r in findings.merged}
    for row in findings.grid:
        variant = {0.5: "chosen", 1.0: ""}[row["factor"]]
        measured = lengths[row["group"], row["seed"], row["method"], variant]
        assert row["norm_over_mean"] == pytest.approx(measured, rel=1e-4)
        assert row["val_avg"] == {0.5: 40, 1.0: 30}[row["factor"]]


def test_points_that_differ_in_the_seed_are_one_group(plans, tmp_path):
    assert name_groups(plans) == ["independent A"] * 2 + ["shared A"] * 2
    wider = [compose_plan(tmp_path, f"peft.r={rank}", "seed=1") for rank in (4, 8)]
    assert name_groups(wider) == ["independent A, peft.r=4", "independent A, peft.r=8"]
    released = ["benchmark=mm_mergebench", "model=llava15_7b", "expert_set=released"]
    assert name_groups([compose_plan(tmp_path, *released)]) == ["experts given"]


def test_a_shared_initial_A_is_seen_in_the_cosines_and_cross_terms(findings):
    for group, cosine in (("shared A", 1), ("independent A", 0)):
        rows = [row for row in findings.pairs if row["group"] == group]
        assert sum(row["a_cosine"] for row in rows) / len(rows) == pytest.approx(cosine, abs=0.2)
    plain_sums = {row["group"]: row for row in findings.cross if row["kind"] == "plain"}
    assert plain_sums["shared A"]["cosine"] > 0.99 > plain_sums["independent A"]["cosine"] + 0.5


def test_a_dense_merge_is_measured_as_an_adapter_of_it_is(tmp_path):
    folders = {
        task: write_expert(tmp_path / task, {m: random_pair(*shape, seed=i) for m, shape in MODULES.items()})
        for i, task in enumerate(TASKS)
    }
    method = read_method("task_arithmetic")
    updates, expert = {}, open_adapter(folders[TASKS[0]])
    for form in ("adapter", "delta"):
        formatted = replace(method, out=replace(method.out, format=form))
        address = address_of(tmp_path, formatted, folders)
        merge(address, formatted, folders, **QUIET)
        updates[form] = open_update(address.path, form, expert)
    for module in MODULES:
        dense, pair = updates["delta"](module), updates["adapter"](module)
        torch.testing.assert_close(dense, pair.delta(), rtol=1e-4, atol=1e-5)


def test_correlations_are_within_a_seed_and_count_each_merged_model_once(findings):
    repeated = [row | {"method": "same again"} for row in findings.merged]
    assert relate(replace(findings, merged=findings.merged + repeated)) == relate(findings)
    rows = {(r["group"], r["scope"], r["quantity"]): r for r in relate(findings)}
    points = rows["shared A", "points", "share"]
    assert (points["n"], points["n_in_all"], points["seeds"]) == (24, 48, 2)
    assert rows["shared A", "within_method", "share"]["n"] == len(TASKS)
    assert rows["shared A", "methods", "norm_over_mean"]["n"] == 2 * len(METHODS)


def test_a_task_that_the_expert_hardly_gains_on_is_left_out(findings):
    kept = [r | {"individual": r["zero_shot"] + 4.9} if r["task"] == "rec" else r for r in findings.kept]
    rows = relate(replace(findings, kept=kept))
    assert {r["n"] for r in rows if r["scope"] == "points"} == {18}


def test_what_is_missing_is_named_with_its_command(tmp_path):
    with pytest.raises(UserError, match=r"(?s)experts/rec-.*merge_eval\.sh"):
        measure([compose_plan(tmp_path, "strength_grid=null")])


def test_the_page_has_a_line_for_every_method_with_both_strengths(findings):
    links = dict.fromkeys(("experts", "kept", "strengths", "scores"), "![x](x.svg)")
    page = "\n\n".join(page_blocks(findings, relate(findings), links))
    page = re.sub(" +", " ", page)
    assert page.count("| Task Arithmetic |") == 2  # a group each
    # 20, and 4.5 for the tasks and 1 or 2 for the seed; (26 - 16) / (96 - 16)
    assert page.count("| Task Arithmetic | 26.0 | 0.13 | 0.303 → 0.151 | ") == 2
    assert "| independent A, 2 seeds | seen avg |" in page
    assert page.count("![x](x.svg)") == 4
    assert "nan" not in page and "chosen |" not in page


def test_the_same_findings_draw_the_same_bytes(findings):
    tables = {field.name: getattr(findings, field.name) for field in dataclasses.fields(findings)}
    one = Findings(**{name: [r for r in rows if r["group"] == "shared A"] for name, rows in tables.items()})
    first = draw_findings(one)
    assert first == draw_findings(one)
    assert [figure.name for figure in first] == ["experts", "kept", "strengths", "scores"]


def test_the_findings_of_a_finished_run_are_written_beside_its_report(smoke: SmokeRun):
    point = compose("findings", ["profile=smoke", "logger=none", f"paths.runs={smoke.runs}"])
    (page,) = write(make_plans([point]))
    assert page == smoke.root / "reports" / "main" / "findings.md"
    assert "the numbers mean nothing" in page.read_text()
    with (page.parent / "findings" / "merged.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"Multi-task", "RobustMerge"} <= {row["method"] for row in rows}
    assert {row["variant"] for row in rows} == {"", "chosen"}
    for name in ("experts.png", "kept.svg", "scores.png", "relations.csv"):
        assert (page.parent / "findings" / name).stat().st_size > 0
