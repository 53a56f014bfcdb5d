"""`plan=true`: what would be trained, without weights, a GPU or a network."""

from __future__ import annotations

import pytest

from llava_ext.settings import Trainer
from pipeline.plan import Plan
from pipeline.sweep import make_plans
from pipeline.tools.training_plan import SAMPLED, describe, list_smaller
from tests.plans import finish, make_point
from tests.tiny_model import write_base, write_task

PAPER = ("model=llava15_7b", "benchmark=mm_mergebench")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_plan(runs, *words: str) -> Plan:
    (plan,) = make_plans([make_point(runs, *words, program="train_all")])
    return plan


def read_lines(plan: Plan) -> dict[str, list[str]]:
    """The words of every line by its first one."""
    lines = [line.split() for line in describe(plan)]
    return {words[0]: words for words in lines if words}


def test_the_paper_s_training_is_planned_from_what_is_known_of_it(tmp_path):
    lines = read_lines(make_plan(tmp_path, *PAPER, "tasks=[scienceqa,vqav2]", "tokens_per_second=1000"))
    assert lines["scienceqa"][1] == "12,726" and "verified)" in lines["scienceqa"]
    steps, tokens = 12726 // 128, 12726 // 128 * 128 * 676
    assert lines["scienceqa"][-7:-3] == [str(steps), f"~{tokens / 1e6:.1f}", "M", f"{tokens // 8000 // 60}"]
    assert lines["vqav2"][1] == "—"
    assert lines["Trained:"][1] == "39,976,960" and "20,979,712" in lines["Trained:"]
    assert [lines[number][1:4] for number in "8421"] == [["16", "x", size] for size in "1248"]
    assert "over" in lines["8"]  # a time, as nothing is known of the rows of vqav2


def test_rows_that_are_prepared_are_counted_and_experts_that_are_trained_are_left_out(tmp_path):
    base = write_base(tmp_path / "base")
    words = (f"model.checkpoint={base}", "tasks=[vqav2,rec]", "profile=smoke", "tokens_per_second=10")
    plan = make_plan(tmp_path, *words)
    vqav2, rec = plan.config.seen
    write_task(plan.data(vqav2).path, count=30)
    finish(plan.data(vqav2))
    finish(plan.expert(rec))
    lines = read_lines(plan)
    assert lines["vqav2"][:4] == ["vqav2", "30", "prepared", "data"] and not lines["vqav2"][-4].startswith("~")
    assert lines["rec"][-1] == "trained" and lines["rec"][2:4] == ["the", "configuration"]
    assert lines["multi-task"][1] == f"{30 + plan.config.data(rec).counts.train:,}"
    assert SAMPLED > 30


def test_a_model_whose_shape_is_not_known_here_has_rows_and_steps_alone(tmp_path):
    lines = read_lines(make_plan(tmp_path, *PAPER, "model.checkpoint=some/other", "tasks=[scienceqa]"))
    assert lines["scienceqa"][1] == "12,726" and lines["Parameters"][-1] == "(model.checkpoint=FOLDER)."
    lines = read_lines(make_plan(tmp_path, "model=clip_tiny", "benchmark=clip8_mini", "tasks=[cars]"))
    assert lines["cars"][-2:] == ["—", "—"]


def test_fewer_processes_are_tried_on_one_machine():
    trainer = Trainer("ddp", "cuda", 8, "bf16", nodes=2)
    assert [(one.nodes, one.processes) for one in list_smaller(trainer)] == [(2, 8), (1, 8), (1, 4), (1, 2), (1, 1)]
