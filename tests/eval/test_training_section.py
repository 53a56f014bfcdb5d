"""Whether every expert learned, and the figure of all losses. Needs nothing."""

from __future__ import annotations

import dataclasses

import pytest

from eval.report.assemble import assemble_report
from eval.report.loss_curves import POINTS, draw_losses
from eval.report.results import Training, group_results
from eval.report.section_training import Trained, list_trained
from tests.report_cases import make_result

FALLING = Training(160, tuple(1 / step for step in range(1, 21)), (1e-3,) * 20)
FLAT = dataclasses.replace(FALLING, losses=FALLING.losses[::-1])


def make_experts(right: dict[str, int], seed: int | None = None, **trainings: Training):
    return make_result("individual", "individual", "Individual", right, trainings=trainings, seed=seed)


ZERO_SHOT = make_result("zero_shot", "zero_shot", "Zero-shot", {"vqav2": 60, "rec": 60, "aokvqa": 60})


def test_first_and_last_loss_are_means_over_a_tenth_of_the_steps():
    assert FALLING.first == pytest.approx((1 + 1 / 2) / 2)
    assert FALLING.last == pytest.approx((1 / 19 + 1 / 20) / 2)
    assert FALLING.fell_by == pytest.approx(100 * (1 - FALLING.last / FALLING.first))
    assert Training(8, (0.5,), (1e-3,)).fell_by == 0


@pytest.mark.usefixtures("undrawn")
def test_an_expert_that_did_not_learn_is_named_with_the_reason(plain_context):
    experts = make_experts({"vqav2": 90, "rec": 60}, vqav2=FLAT, rec=FALLING)
    both = {"vqav2": 80, "rec": 90}
    multi_task = make_result("multi_task", "multi_task", "Multi-task", both, trainings={"multi_task": FALLING})
    report = assemble_report([ZERO_SHOT, experts, multi_task], plain_context)
    text = report.files["report.md"].decode()
    section = text.partition("## Did every expert learn?")[2].partition("\n## ")[0]
    assert section.split("\n\n")[1:3] == [
        "1 of 3 did.",
        "- ▼ VQAv2: the loss did not fall.\n- ▼ REC: the score is not above zero-shot's.",
    ]
    assert "| Multi-task | 20 | 160 | 0.75 | 0.0513 | 93.2 | 70.8 | 50.0 | yes |" in section
    assert 'src="figures/losses.svg" alt="Loss of' in section and "figures/losses.png" in report.files


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_losses_has_neither_section_nor_figure(plain_context):
    report = assemble_report([ZERO_SHOT, make_experts({"vqav2": 90, "rec": 60})], plain_context)
    assert b"Did every expert learn?" not in report.files["report.md"]
    assert not [name for name in report.files if "losses" in name or "training" in name]


def test_of_several_seeds_it_is_said_in_how_many_trainings(plain_context):
    results = [ZERO_SHOT]
    results += [make_experts({"vqav2": 90}, seed, vqav2=FLAT if seed == 2 else FALLING) for seed in (1, 2, 3)]
    (one,) = list_trained(group_results(results), plain_context)
    assert one.doubts == ["the loss did not fall in 1 of 3 trainings"]


def test_experts_of_several_bases_are_compared_with_none_of_them(plain_context):
    other = dataclasses.replace(ZERO_SHOT, address="base/other")
    results = [ZERO_SHOT, other, make_experts({"vqav2": 50}, vqav2=FALLING)]
    (one,) = list_trained(group_results(results), plain_context)
    assert one.scores == (None,) and one.doubts == []


def test_the_figure_of_long_runs_is_small_and_a_loss_of_zero_is_no_fault():
    losses = tuple(0.0 if step % 7 == 0 else 1 / step for step in range(20_000))
    trained = [Trained(f"task {n}", "", "individual", (Training(1, losses, losses),), (None,)) for n in range(9)]
    figure = draw_losses(trained)
    assert figure == draw_losses(trained)
    assert len(figure.svg) < 200_000
    assert 0 < figure.svg.count(b"fill-opacity: 0.35") < 2 * POINTS
