"""Every result keeps its address: those of the default plan, and of LLaVA-1.5-7B on MM-MergeBench, are pinned.

A change here means that finished results are made again. Whoever wants that says which and why in the commit, and
writes the file anew: `python -m tests.pipeline.test_addresses`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from pipeline import addresses
from pipeline.plan import Plan
from pipeline.program import compose
from pipeline.sweep import make_plans
from robustmerge.stage.address import REPOSITORY
from tests.published_folder import write_published

GOLDEN = REPOSITORY / "tests/golden/addresses.json"
PLANS = {
    "the default": [],
    "a base that is trained here": ["model.base.train=true"],
    "mm_mergebench of llava15_7b": ["benchmark=mm_mergebench", "model=llava15_7b"],
}
ASKED = ("zero_shot", "expert/vqav2", "multi_task", "merged/task_arithmetic", "merged/robustmerge")


def plan_under(folder: Path, *words: str) -> Plan:
    """The configuration with every method, its published files and the Hub's commits fixed."""
    collection, images = write_published(folder)
    runs = folder / "runs"
    runs.mkdir()
    (runs / "hub.json").write_text(json.dumps({"llava-hf/llava-1.5-7b-hf@main": "1" * 40}))
    places = [f"paths.mm_mergebench={collection}", f"paths.mm_mergebench_images={images}", f"paths.runs={runs}"]
    (plan,) = make_plans([compose("merge_eval", ["methods=all", *places, *words])])
    return plan


def list_addresses(plan: Plan) -> dict[str, list[str]]:
    """By stage, the short addresses of a plan; of answers and scores, those of one source of every kind."""
    sources = [source for source in plan.configured if source.name in ASKED]
    evaluations = [one for source in sources for one in plan.list_evaluations(source)]
    first = {one.eval_set.task.name: one for one in reversed(plan.val_evaluations)}  # at one strength
    official = [plan.score(one.source, one.eval_set.with_other_protocol()) for one in evaluations]
    evaluations += reversed(first.values())
    return {
        "data": [plan.data(task).short for task in plan.config.tasks],
        "base": [address.hash8 for address in plan.base_addresses],
        "experts": [address.short for address in (*plan.experts.values(), plan.multi_task)],
        "merged": [plan.merged(method).short for method in plan.config.methods],
        "predictions": [one.predictions.short for one in evaluations],
        "scores": [one.score.short for one in evaluations],
        "official": [address.short for address in official],
    }


@pytest.mark.parametrize("name", PLANS)
def test_every_address_is_the_pinned_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.addresses.has_java", lambda: True)  # without it captions have other scores
    planned = list_addresses(plan_under(tmp_path, *PLANS[name]))
    moved = {
        stage: sorted({*pinned} - {*planned[stage]}) for stage, pinned in json.loads(GOLDEN.read_text())[name].items()
    }
    assert not any(moved.values()), moved  # what is added, as a method, has no pinned address to keep


if __name__ == "__main__":
    addresses.has_java = lambda: True  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        golden = {name: list_addresses(plan_under(Path(folder) / name, *words)) for name, words in PLANS.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
