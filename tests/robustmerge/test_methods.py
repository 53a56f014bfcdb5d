"""Methods as data and the rules they name: tables, configs, ablations, cuts to a rank."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from pipeline.program import compose
from robustmerge import method as method_file
from robustmerge import method_parts, pcb
from robustmerge.algebra import merge_pairs
from robustmerge.low_rank import concatenate, truncate
from robustmerge.method import METHODS, Method, build_method, list_methods, read_method
from robustmerge.method_parts import Balance, Basis, Out, Prune, Scale
from robustmerge.rules import COMBINE, PRUNE
from robustmerge.spaces import SPACES
from robustmerge.stage.settings import ConfigError, values_of
from robustmerge.steps import SPECTRUM
from tests.merge_cases import keep_largest, random_experts


def test_a_cut_to_rank_is_the_best_approximation_for_pairs_and_dense_updates() -> None:
    pair = concatenate([modules["layers.0.q"] for modules in random_experts(rank=2).values()], [1.0, 2.0, 3.0])
    u, s, v = torch.linalg.svd(pair.delta(), full_matrices=False)
    best = u[:, :3] * s[:3] @ v[:3]
    for update in (pair, pair.delta()):
        cut, rest = truncate(update, 3)
        torch.testing.assert_close(cut.delta(), best)
        assert rest == pytest.approx(float((pair.delta() - best).square().sum()), rel=1e-4)
    assert truncate(pair, 6) == (pair, 0.0)


def test_pruned_updates_in_delta_space_are_cut_to_the_rank_asked_for() -> None:
    pairs = {name: modules["layers.0.q"] for name, modules in random_experts().items()}
    method = Method("m", "delta", 1.0, prune=Prune("magnitude", 0.3), out=method_file.Out(rank=7))
    expected = sum(keep_largest(p.delta(), 0.3) for p in pairs.values())
    torch.testing.assert_close(merge_pairs(pairs, method).delta(), expected)


@pytest.mark.parametrize("name", list_methods())
def test_a_method_file_is_the_same_method_with_and_without_hydra(name: str) -> None:
    text = (METHODS / f"{name}.yaml").read_text()
    assert text.startswith(f"# bash scripts/merge_eval.sh merge={name}\n")
    method = read_method(name)
    assert build_method(compose("merge", [f"merge={name}"])["merge"]) == method
    assert method.name == name
    assert method.title
    assert method.paper.startswith("https://")


def test_the_methods_of_the_paper_and_beyond_are_here() -> None:
    paper = "robustmerge robustmerge_eq5 average task_arithmetic ties dare dare_ties pcb knots_ties knots_dare_ties svd"
    beyond = (
        "tsv_m tsv_m_lines iso_c iso_cts swudi dc_merge compress_then_merge ct_merging lora_lego do_merging core_ties"
    )
    mergekit = "breadcrumbs della sce"
    assert set(list_methods()) >= {*paper.split(), *beyond.split(), *mergekit.split()}


def test_the_neutral_file_lists_every_key_at_its_default() -> None:
    """A method file that forgets a key gets what the dataclass says, and what the file shows is what holds."""
    neutral = yaml.safe_load((METHODS / "_neutral.yaml").read_text())
    method = build_method({**neutral, "name": "neutral", "strength": 1.0})
    assert method == Method(name="neutral", strength=1.0)
    assert set(neutral) | {"name", "title", "paper"} == {field.name for field in dataclasses.fields(Method)}
    nested = {"prune": Prune(), "scale": Scale(), "balance": Balance(), "basis": Basis(), "out": Out()}
    for key, default in nested.items():
        assert neutral[key] == values_of(default)


def test_thresholds_cover_what_is_usual_in_a_space_unless_it_is_said() -> None:
    usual = {space: read_method("ties", space=space).prune.scope for space in method_parts.SPACES}
    assert usual == {"factors": "tensor", "delta": "model", "knots": "model", "core": "tensor"}
    assert read_method("ties", prune__scope="model").prune.scope == "model"


def test_a_change_in_python_is_the_same_override_on_the_command_line() -> None:
    composed = compose("merge", ["merge=ties", "merge.space=delta", "merge.prune.density=0.1"])["merge"]
    assert build_method(composed) == read_method("ties", space="delta", prune__density=0.1)


def test_the_tables_hold_what_the_choices_say() -> None:
    assert tuple(SPACES) == method_parts.SPACES
    assert tuple(PRUNE) == method_parts.PRUNE_RULES
    assert tuple(COMBINE) == method_parts.COMBINE_RULES
    assert tuple(pcb.CLAMP) == method_parts.VARIANTS
    assert ("none", *SPECTRUM) == method_parts.SPECTRUM_RULES


def test_all_mistakes_in_the_parts_of_a_method_are_told_at_once_with_their_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        read_method("robustmerge", prune__density=1.2, scale__floor=1.0, scale__A="C", balance__variant="es",
                    basis__cut=-1.0, out__rank=0, out__dtype="int8")  # fmt: skip
    assert list(map(str, refused.value.problems)) == [
        "density must be in (0, 1], got 1.2 (merge.prune.density)",
        "scale.A must be null, A or B, got 'C' (merge.scale.A)",
        "floor must be in [0, 1), got 1.0 (merge.scale.floor)",
        "unknown variant 'es'; choose one of main, vision (merge.balance.variant)",
        "cut must be at least 0, got -1.0 (merge.basis.cut)",
        "unknown dtype 'int8'; choose one of bfloat16, experts, float16, float32 (merge.out.dtype)",
        "rank must be at least 1, got 0 (merge.out.rank)",
    ]


def test_mistakes_in_the_parts_of_a_method_do_not_hide_those_beside_them() -> None:
    with pytest.raises(ConfigError) as refused:
        read_method("robustmerge", prune={"rule": "none", "density": 0.5, "count": "most"}, combine="summ", seed=0)
    assert [problem.key for problem in refused.value.problems] == [
        "merge.prune.count", "merge.prune.density", "merge.combine",
    ]  # fmt: skip


def test_all_mistakes_between_the_parts_of_a_method_are_told_at_once_with_their_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        read_method("robustmerge", combine="summ", space="delta", weights={"a": float("inf")}, out__format="adapter")
    assert list(map(str, refused.value.problems)) == [
        "unknown combine 'summ'; choose one of balanced, elected, mean, sum (did you mean 'sum'?) (merge.combine)",
        "a must be a finite number, got inf (merge.weights.a)",
        "scaling works on A and B apart, so it needs merge.space=factors, got space delta (merge.scale.B)",
        "a pruned or elected update in space delta has full rank, which no adapter holds exactly; give the rank to cut "
        "it to, merge.out.rank=R, or take delta (merge.out.format)",
    ]


@pytest.mark.parametrize(
    ("name", "changes", "problems"),
    [
        ("robustmerge", {"space": "dleta"},
         ["unknown space 'dleta'; choose one of core, delta, factors, knots (did you mean 'delta'?) (merge.space)"]),
        ("robustmerge_eq5", {"product": "eahc"},
         ["unknown product 'eahc'; choose one of each, of_sums (did you mean 'each'?) (merge.product)"]),
        ("robustmerge_eq5", {"combine": "summ"},
         ["unknown combine 'summ'; choose one of balanced, elected, mean, sum (did you mean 'sum'?) (merge.combine)"]),
        ("robustmerge", {"space": "core"},
         ["scaling works on A and B apart, so it needs merge.space=factors, got space core (merge.scale.B)"]),
        ("dc_merge", {"out__rank": 0}, ["rank must be at least 1, got 0 (merge.out.rank)"]),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_and_nothing_that_follows_from_it(
    name: str, changes: dict, problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_method(name, **changes)
    assert list(map(str, refused.value.problems)) == problems


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("task_arithmetic", {"prune__density": 0.3}, "density 0.3 prunes nothing while prune.rule is none"),
        ("robustmerge", {"prune__densty": 0.3}, r"did you mean 'density'.*\(merge.prune.densty\)"),
        ("knots_ties", {"prune__count": "exact"}, r"count=exact needs a tensor that is held whole"),
        ("ties", {"product": "each", "strength": 1.0}, "product=each is a sum of products, got combine elected"),
        ("dare_ties", {"first__rule": "magnitude"}, r"unknown rule 'magnitude'.*\(merge.first.rule\)"),
        ("dare_ties", {"first__skip": 0.1}, r"skip is of thresholds.*\(merge.first.skip\)"),
        ("dare_ties", {"first__rescale": "l1"}, r"rescale=l1 is for `prune` alone.*\(merge.first.rescale\)"),
        ("dare", {"prune__rescale": "l2"}, r"rescale must be false, true or l1, got 'l2' \(merge.prune.rescale\)"),
        ("breadcrumbs", {"prune__skip": 1.0}, r"skip must be in \[0, 1\), got 1.0 \(merge.prune.skip\)"),
        ("breadcrumbs", {"prune__count": "exact"}, r"set prune.count=at_least \(merge.prune.skip\)"),
        ("della", {"prune__epsilon": 0.3}, r"must be in \(0, 1\], got 0.8 and 0.3 \(merge.prune.epsilon\)"),
        ("robustmerge", {"prune__rescale": "l1"}, r"take merge.prune.rescale=false.*\(merge.prune.rescale\)"),
        ("sce", {"scale__B": "A", "prune__scope": "model"}, "mean squares over the whole model are measured before"),
        ("pcb", {"balance__variant": "es"}, r"unknown variant 'es'.*\(merge.balance.variant\)"),
        ("pcb", {"balance__density": 0}, r"density must be in \(0, 1\], got 0.0 \(merge.balance.density\)"),
        ("pcb", {"scale__B": "A", "prune__scope": "model"}, "scores over the whole model are measured before"),
        ("knots_ties", {"basis__cut": -1}, r"cut must be at least 0, got -1.0 \(merge.basis.cut\)"),
        ("ties", {"strength": float("nan")}, r"strength must be a finite number, got nan \(merge.strength\)"),
        ("svd", {"out__rank": 0}, r"rank must be at least 1, got 0 \(merge.out.rank\)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(name: str, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_method(name, **changes)


def test_another_space_brings_the_strength_listed_beside_it_unless_one_is_given() -> None:
    assert read_method("task_arithmetic").strength == 0.55
    assert read_method("task_arithmetic", space="delta").strength == 0.3
    assert read_method("task_arithmetic", product="each").strength == 0.3
    assert read_method("task_arithmetic", space="delta", strength=0.7).strength == 0.7


@pytest.mark.parametrize("name", list_methods())
def test_every_method_file_merges_one_module_in_a_notebook(name: str) -> None:
    pairs = {expert: modules["layers.0.q"] for expert, modules in random_experts(rank=2).items()}
    alone = {"params__strength": 1.0} if read_method(name).is_graded else {}  # one module has no depth
    method = read_method(name, **({"prune__density": 1.0} if name.startswith("robustmerge") else alone))
    update = merge_pairs(pairs, method)
    assert (update.delta() if hasattr(update, "delta") else update).shape == (7, 10)


@pytest.mark.parametrize(
    ("name", "param"), [("ct_merging", "common_rank"), ("compress_then_merge", "rank"), ("lora_lego", "seed")]
)
def test_a_whole_number_may_be_written_with_a_point(name: str, param: str) -> None:
    pairs = {expert: modules["layers.0.q"] for expert, modules in random_experts(rank=2).items()}
    whole, pointed = (merge_pairs(pairs, read_method(name, **{f"params__{param}": value})) for value in (2, 2.0))
    assert torch.equal(whole.delta(), pointed.delta())
