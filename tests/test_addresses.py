"""Every result keeps its address: those of the default plan, and of LLaVA-1.5-7B on MM-MergeBench, are pinned.

A change here means that finished results are made again. Whoever wants that says which and why in the commit, and
writes the file anew: `python -m tests.test_addresses`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from robustmerge.runs import REPOSITORY
from scripts import addresses
from scripts.line import Line
from scripts.program import compose
from scripts.steps import plan
from tests.published_folder import write_published

GOLDEN = REPOSITORY / "tests/golden/addresses.json"
PLANS = {
    "the default": [],
    "mm_mergebench of llava15_7b": ["benchmark=mm_mergebench", "model=llava15_7b"],
}
ASKED = ("zero_shot", "expert/vqav2", "multi_task", "merged/task_arithmetic", "merged/robustmerge")


def plan_under(folder: Path, *words: str) -> Line:
    """The configuration with every method, its published files and the Hub's commits fixed."""
    collection, images = write_published(folder)
    runs = folder / "runs"
    runs.mkdir()
    (runs / "hub.json").write_text(json.dumps({"llava-hf/llava-1.5-7b-hf@main": "1" * 40}))
    places = [f"paths.mm_mergebench={collection}", f"paths.mm_mergebench_images={images}", f"paths.runs={runs}"]
    (line,) = plan([compose("merge_eval", ["methods=all", *places, *words])])
    return line


def list_addresses(line: Line) -> dict[str, list[str]]:
    """By stage, the short addresses of a plan; of answers and scores, those of one source of every kind."""
    sources = [source for source in line.configured if source.name in ASKED]
    asked = [(source, task, "test") for source in sources for task in source.tasks]
    asked += [(source, task, "val") for source in line.tried[:1] for task in source.tasks]
    bases = [line.corpus, line.base] if line.config.model.base is not None else []
    return {
        "data": [line.data(task).short for task in line.config.tasks],
        "base": [address.short for address in bases],
        "experts": [address.short for address in (*line.experts.values(), line.multi_task)],
        "merged": [line.merged(method).short for method in line.config.methods],
        "predictions": [line.predictions(*one).short for one in asked],
        "scores": [line.score(*one).short for one in asked],
        "official": [line.score(*one, protocol="official").short for one in asked if one[2] == "test"],
    }


@pytest.mark.parametrize("name", PLANS)
def test_every_address_is_the_pinned_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "has_java", lambda: True)  # captions are scored otherwise where there is none
    found = list_addresses(plan_under(tmp_path, *PLANS[name]))
    assert found == json.loads(GOLDEN.read_text())[name]


if __name__ == "__main__":
    addresses.has_java = lambda: True
    with tempfile.TemporaryDirectory() as folder:
        found = {name: list_addresses(plan_under(Path(folder) / name, *words)) for name, words in PLANS.items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
