"""The released experts from the Hub to a table, as one types it: a small Hub, a small LLaVA, the published layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.program import compose
from pipeline.stages import merge, predict
from pipeline.sweep import make_plans
from robustmerge.stage.address import REPOSITORY, read_manifest
from robustmerge.stage.settings import UserError
from tests.original_layout import write_original
from tests.published_folder import write_published
from tests.tiny_hub import COMMIT, TinyHub, serve
from tests.tiny_model import write_base

TASKS = {"vqav2": "VQAv2", "rec": "REC"}  # with an expert; aokvqa has none


@dataclass(frozen=True)
class Place:
    """hub: what serves experts and base; root: where everything else lies."""

    hub: TinyHub
    root: Path

    def type(self, program: str, *words: str, offline: bool = False) -> subprocess.CompletedProcess:
        """Type a command for a 7B model with the released experts; base, data and Hub are this place's."""
        released = [f"benchmark.released.{task}=ann/LLaVA_7B_lora_r16_{name}" for task, name in TASKS.items()]
        paths = {"runs": "runs", "mm_mergebench": "published/hub", "mm_mergebench_images": "published/pictures"}
        places = [f"paths.{name}={self.root / place}" for name, place in paths.items()]
        options = ["model=llava15_7b", "benchmark=mm_mergebench", "expert_set=released", "model.checkpoint=ann/llava"]
        options.append("logger=none")
        environment = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.root / "hf"), "NO_PROXY": "127.0.0.1"}
        return subprocess.run(
            [
                sys.executable,
                str(REPOSITORY / "scripts" / program),
                *options,
                *released,
                *places,
                "logger=none",
                *words,
            ],
            env={**os.environ, **environment, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": str(int(offline))},
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("released")
    write_published(root / "published")
    folders = {"ann/llava": write_base(root / "base")}
    for seed, name in enumerate(TASKS.values()):
        folders[f"ann/LLaVA_7B_lora_r16_{name}"] = write_original(root / name, seed)
    files = {repo: {file.name: file.read_bytes() for file in folder.iterdir()} for repo, folder in folders.items()}
    with serve(files) as hub:
        yield Place(hub, root)


def test_released_experts_are_fetched_converted_merged_and_evaluated_in_one_command(place):
    words = ["tasks=[vqav2,rec,aokvqa]", "methods=[robustmerge]"]
    refused = place.type("merge_eval.py", *words)
    assert refused.returncode == 2 and "needs a GPU" in refused.stderr and "device=cpu limit=8" in refused.stderr
    results = place.root / "runs" / "mm_mergebench-llava15_7b"
    assert list((results / "merged").glob("robustmerge-*/manifest.json")), "merging needs no GPU"
    assert not any("llava/" in path for path, _ in place.hub.asked if "/api/" not in path), "nor the base"

    done = place.type("merge_eval.py", *words, "device=cpu", "limit=2")
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (results / "reports").glob("*/report.md")
    text = report.read_text()
    assert "PARTIAL EVALUATION, NOT A RESULT" in text
    for row in ("Zero-shot", "Individual", "RobustMerge"):
        assert f"| {row}" in text
    assert COMMIT in (place.root / "runs" / "hub.json").read_text()
    (merged,) = (results / "merged").glob("robustmerge-*/manifest.json")
    assert set(read_manifest(merged)["identity"]["inputs"]) == set(TASKS)
    experts = [read_manifest(file)["identity"] for file in (results / "experts").glob("*/manifest.json")]
    assert [one["stage"] for one in experts] == ["convert"] * len(TASKS)

    n_requests = len(place.hub.asked)
    again = place.type("merge_eval.py", *words, "device=cpu", "limit=2", offline=True)
    assert again.returncode == 0 and len(place.hub.asked) == n_requests, again.stdout + again.stderr


def test_one_source_needs_no_other_expert(tmp_path):
    whole, cut = write_original(tmp_path / "rec", 1), write_original(tmp_path / "vqav2")
    (cut / "adapter_model.bin").write_bytes(b"cut")
    words = [
        "model=llava15_7b", "benchmark=mm_mergebench", "expert_set=released", "tasks=[vqav2,rec]", "source=expert/rec",
        f"model.checkpoint={tmp_path}", f"paths.runs={tmp_path}/runs",
        f"benchmark.released.vqav2={cut}", f"benchmark.released.rec={whole}",
    ]  # fmt: skip
    plans = make_plans([{**compose("predict", words), "overrides": words}])
    predict.check_sources(plans)
    with pytest.raises(UserError, match=r"cannot read .*vqav2/adapter_model.bin: it is damaged"):
        merge.check_experts(plans)
