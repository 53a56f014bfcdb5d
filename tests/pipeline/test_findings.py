"""What the findings measure, by laws, and the page that tells them. Needs nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report.results import Choice
from pipeline.plan import make_plans
from pipeline.program import compose
from pipeline.sources import Source
from pipeline.tools.findings.figures import draw_findings
from pipeline.tools.findings.measure import groups_of, measure
from pipeline.tools.findings.page import compose as compose_page
from pipeline.tools.findings.page import write
from pipeline.tools.findings.relations import Findings, chance_level, rank_correlation, relate
from pipeline.tools.findings.sentences import conclude
from pipeline.tools.findings.tables import compose_details, spread
from robustmerge.analysis.retention import (
    cross_terms,
    has_cross_terms,
    inner_product,
    inner_products,
    open_update,
    what_is_kept,
)
from robustmerge.formats.adapter import LoraPair
from robustmerge.merging import merge
from robustmerge.method import Method, read_method
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, address_of, write_expert
from tests.smoke_line import SmokeRun

TASKS = ("iconqa", "rec", "vizwiz", "vqav2")
MODULES = {"layers.0.q_proj": (9, 12), "layers.1.q_proj": (7, 10)}  # d_out, d_in
METHODS = ("task_arithmetic", "ties", "robustmerge")
PICTURES = dict.fromkeys(("experts", "kept", "strengths", "scores"), "![x](x.png)")


def random_pair(d_out: int, d_in: int, seed: int, rank: int = 2) -> LoraPair:
    source = torch.Generator().manual_seed(seed)
    return LoraPair(torch.randn(rank, d_in, generator=source), torch.randn(d_out, rank, generator=source))


def orthogonal_pairs(n: int) -> list[LoraPair]:
    """Updates that share no direction, of different norms."""
    eye = torch.eye(2 * n)
    return [LoraPair(eye[2 * i : 2 * i + 2], (i + 1.0) * eye[:, 2 * i : 2 * i + 2]) for i in range(n)]


def kept_of(experts: list[LoraPair], merged: LoraPair | torch.Tensor):
    (kept,) = what_is_kept(inner_products(experts, [merged]))
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
    own, other = kept_of(experts, experts[0]), kept_of(experts, stranger)
    assert (float(own.share[0]), float(own.distance[0]), own.outside) == pytest.approx((1, 0, 0), abs=1e-6)
    assert (float(other.share[0]), float(other.interference[0]), other.outside) == (0, math.inf, 1)


def test_modules_add_up_to_one_long_vector():
    pairs = [[random_pair(5, 6, 10 * i + m) for m in range(2)] for i in range(3)]
    one, other = (inner_products([x[m] for x in pairs], [pairs[0][1]]) for m in range(2))
    long = [torch.cat([p.delta().flatten() for p in x])[None] for x in pairs]
    merged = torch.cat([pairs[0][1].delta().flatten()] * 2)[None]
    for found, exact in zip(one.plus(other), inner_products(long, [merged]), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


# --- cross terms --------------------------------------------------------------------------------------------------


def plain(**changes) -> Method:
    return Method(name="plain", **{"strength": 1.0, **changes})


def test_cross_terms_are_what_summing_factors_adds():
    experts = {f"e{i}": random_pair(9, 12, i) for i in range(3)}
    own = sum(pair.delta() for pair in experts.values())
    whole = sum(p.B for p in experts.values()) @ sum(p.A for p in experts.values())
    found = cross_terms(experts, plain(), "m")
    assert found.weight == pytest.approx(float((whole - own).norm() / own.norm()), rel=1e-4)
    assert found == pytest.approx(cross_terms(experts, plain(strength=0.3), "m"))


def test_cross_terms_of_experts_that_share_A_only_lengthen_the_sum():
    A = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    shared = {f"e{i}": LoraPair(A, random_pair(9, 12, i).B) for i in range(4)}
    found = cross_terms(shared, plain(), "m")
    assert (found.weight, found.cosine) == pytest.approx((3, 1), rel=1e-4)
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


def test_rank_correlation_of_few_or_of_equal_values_is_not_told():
    assert math.isnan(rank_correlation([1, 2, 3], [1, 2, 3]))
    assert math.isnan(rank_correlation([1, 2, 3, math.nan], [1, 2, 3, 4]))
    assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]))


def test_chance_orders_fewer_things_more_often():
    assert 0.6 < chance_level(10) < 0.7  # tables of Spearman's give 0.648
    assert chance_level(5) > chance_level(10) > chance_level(40)
    assert math.isnan(chance_level(3))


def test_a_spread_tells_its_deviation_where_there_is_one():
    assert spread([1.0, 2.0]) == "1.50 ± 0.71"
    assert spread([1.5]) == spread([1.5, 1.5]) == "1.50"
    assert spread([]) == spread([math.nan]) == "—"
    assert spread([-0.001]) == "0.00"
    assert spread([1.0, 2.0], "+.1f") == "+1.5 ± 0.7"
    assert spread([1.0, math.inf]) == "inf"


# --- from lines to the page ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked(Source):
    """A source with the height of its scores."""

    height: int = 0


def stub_address(path: Path, done: bool = True):
    return SimpleNamespace(path=path, hash8=path.name, short=path.name, is_complete=lambda: done)


def stub_line(root: Path, seed: int, shared: bool, names: tuple[str, ...] = METHODS):
    """A point of a sweep: experts in folders, merged for real, scores made up so that longer updates score higher."""
    root.mkdir(parents=True)
    folders = {}
    for i, task in enumerate(TASKS):
        pairs = {m: random_pair(*shape, seed=100 * seed + i) for m, shape in MODULES.items()}
        start = {m: random_pair(*shape, seed=seed).A for m, shape in MODULES.items()}
        pairs = {m: LoraPair(start[m] if shared else p.A, (1 + i) * p.B) for m, p in pairs.items()}
        folders[task] = write_expert(root / f"{task}-{seed}-{shared}", pairs)
    tasks = [SimpleNamespace(name=task, seen=True) for task in TASKS]
    found = [Asked("zero_shot", "zero_shot", stub_address(root / "zero_shot"), tasks, height=10)]
    for task in tasks:
        found.append(Asked(f"expert/{task.name}", "expert", stub_address(root / task.name), [task], height=90))
    for height, name in enumerate(names):
        method = read_method(name)
        method = replace(method, prune=replace(method.prune, density=0.5)) if method.prunings else method
        for variant in ("", "chosen"):
            method = replace(method, strength=0.5) if variant else method
            address = address_of(root, method, folders)
            merge(address, method, folders, **QUIET)
            found.append(Asked(f"merged/{name}", "merged", address, tasks, method, variant, 20 + 9 * height))

    def score(source, task):
        path = root / f"{source.name}-{source.variant}-{task.name}.json".replace("/", "-")
        value = source.height + 3.0 * TASKS.index(task.name) + seed
        score = Score(task.name, "m", value, 1, 1, 0, 0, 0, {"q": value / 100})
        path.write_text(json.dumps(dataclasses.asdict(score)))
        return stub_address(path)

    swept = (f"seed={seed}", f"peft.shared_a_init={str(shared).lower()}")
    config = SimpleNamespace(
        seed=seed, seen=tasks, experts=None, overrides=swept, peft=SimpleNamespace(shared_a_init=shared), profile="full"
    )
    config.benchmark, config.model = SimpleNamespace(name="mini"), SimpleNamespace(name="tiny")
    experts = {task: stub_address(folder) for task, folder in folders.items()}
    choices = {name: Choice(0.5, 0.5, True, {0.5: 40.0, 1.0: 30.0}) for name in names}
    made = {"experts": experts, "sources": tuple(found), "score": score, "choices": choices}
    return SimpleNamespace(config=config, root=root, **made)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("findings")
    return [stub_line(root / f"{seed}-{shared}", seed, shared) for shared in (False, True) for seed in (1, 2)]


@pytest.fixture(scope="module")
def found(lines) -> Findings:
    return measure(lines)


def test_every_point_is_measured_once(lines, found):
    assert len(found.experts) == 4 * len(TASKS)
    assert len(found.merged) == 4 * 2 * len(METHODS)
    assert len(found.kept) == len(found.merged) * len(TASKS)
    assert measure([lines[0], lines[0]]) == measure([lines[0]])


def test_norms_at_the_strengths_tried_are_multiples_of_the_default_one(found):
    assert len(found.grid) == 4 * len(METHODS) * 2
    defaults = {(r["group"], r["seed"], r["method"]): r["norm_over_mean"] for r in found.merged}
    for row in found.grid:
        default = defaults[row["group"], row["seed"], row["method"]]
        assert row["norm_over_mean"] == pytest.approx(row["factor"] * default)
        assert row["val_avg"] == {0.5: 40, 1.0: 30}[row["factor"]]


def test_points_that_differ_in_the_seed_are_one_group(lines):
    assert groups_of(lines) == ["independent A"] * 2 + ["shared A"] * 2
    wider = [SimpleNamespace(config=SimpleNamespace(**{**vars(line.config), "overrides": (f"peft.r={i}",)}))
             for i, line in enumerate(lines[:2])]  # fmt: skip
    assert groups_of(wider) == ["independent A, peft.r=0", "independent A, peft.r=1"]


def test_a_shared_initial_A_is_seen_in_the_cosines_and_cross_terms(found):
    for group, cosine in (("shared A", 1), ("independent A", 0)):
        rows = [row for row in found.pairs if row["group"] == group]
        assert sum(row["a_cosine"] for row in rows) / len(rows) == pytest.approx(cosine, abs=0.2)
    plain_sums = {row["group"]: row for row in found.cross if row["method"].startswith("plain")}
    assert plain_sums["shared A"]["cosine"] > 0.99 > plain_sums["independent A"]["cosine"] + 0.5


def test_a_dense_merge_is_measured_as_an_adapter_of_it_is(tmp_path):
    folders = {
        task: write_expert(tmp_path / task, {m: random_pair(*shape, seed=i) for m, shape in MODULES.items()})
        for i, task in enumerate(TASKS)
    }
    method = read_method("task_arithmetic")
    updates = {}
    for form in ("adapter", "delta"):
        own = replace(method, out=replace(method.out, format=form))
        address = address_of(tmp_path, own, folders)
        merge(address, own, folders, **QUIET)
        updates[form] = open_update(address.path, form)
    for module in MODULES:
        dense, pair = updates["delta"](module), updates["adapter"](module)
        torch.testing.assert_close(dense, pair.delta(), rtol=1e-4, atol=1e-5)


def test_correlations_are_within_a_seed_and_count_each_merged_model_once(found):
    doubled = dataclasses.replace(found, merged=found.merged + [r | {"method": "same again"} for r in found.merged])
    assert relate(doubled) == relate(found)
    rows = {(r["group"], r["scope"], r["quantity"]): r for r in relate(found)}
    points = rows["shared A", "points", "share"]
    assert (points["n"], points["n_in_all"], points["seeds"]) == (24, 48, 2)
    assert rows["shared A", "methods", "norm_over_mean"]["n"] == 2 * len(METHODS)


def test_a_task_that_the_expert_hardly_gains_on_is_left_out(found):
    kept = [r | {"individual": r["zero_shot"] + 4.9} if r["task"] == "rec" else r for r in found.kept]
    rows = relate(dataclasses.replace(found, kept=kept))
    assert {r["n"] for r in rows if r["scope"] == "points"} == {18}


def test_what_is_missing_is_named_with_its_command(lines):
    one = lines[0]
    missing = {name: stub_address(Path("experts/gone"), done=name != "rec") for name in one.experts}
    with pytest.raises(UserError, match=r"experts/gone|gone\n.*merge_eval\.sh"):
        measure([SimpleNamespace(**{**vars(one), "experts": missing})])


def test_the_page_tells_groups_deviations_and_limits(lines, found):
    page = compose_page(lines, found, relate(found), PICTURES)
    assert "Independent A: seeds 1, 2; shared A: seeds 1, 2" in page
    assert "**Independent A, 2 seeds**" in page
    assert "From independent A to shared A" in page
    assert "paired by seed (n = 2)" in page
    assert "lie 18.0 points apart as configured, 18.0 at the strengths chosen on val" in page
    assert "only the strength and the initial A were varied alone" in page
    assert "4 experts of rank 2 can span all 7 dimensions" in page
    assert "| Task Arithmetic | 26.0 | 0.303 → 0.25 | " in page  # 20, and 4.5 for the tasks and 1 or 2 for the seed
    assert "nan" not in page


def test_the_page_is_one_and_the_rest_stands_behind_it(lines, found):
    page = compose_page(lines, found, relate(found), PICTURES)
    details = compose_details(found, relate(found), PICTURES)
    assert len(page.split()) < 1700
    assert [page.count(f"| {name} |") for name in ("Task Arithmetic", "Task Arithmetic, chosen")] == [2, 0]
    assert [details.count(f"| {name} |") for name in ("Task Arithmetic", "Task Arithmetic, chosen")] == [2, 2]
    assert "| Task Arithmetic | 26.0 ± 0.7 | " in details
    assert "nan" not in details


def test_nothing_goes_with_an_order_that_chance_explains(lines, found):
    rows = [row | {"rho": 0.3} for row in relate(found)]
    assert "none of 7 quantities" in "".join(conclude(found, rows)).lower()
    rows = [row | {"rho": 0.99 if row["quantity"] == "outside" else 0.3} for row in rows]
    assert "by seen average goes with part of no expert (+0.99" in "".join(conclude(found, rows))


def test_the_same_findings_draw_the_same_bytes(found):
    tables = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
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
    for name in ("details.md", "experts.png", "kept.svg", "scores.png", "relations.csv"):
        assert (page.parent / "findings" / name).stat().st_size > 0
