"""Tasks whose data is a dataset of labelled pictures, from the configuration to the folder, on a small Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.settings import TaskData
from pipeline.config import Config, Paths, read_config
from pipeline.plan import Plan
from pipeline.program import CONFIGS, compose
from pipeline.stages import prepare
from pipeline.strengths import has_val
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import build
from tests.data_prep.test_labelled_data import ANIMALS, write_parquet
from tests.tiny_hub import COMMIT, OLD, TinyHub, serve, use

# Classes of the dataset and templates of its prompts, and what serves as val, by the published protocol.
CLIP8 = {
    "cars": (196, 8, "test"), "mnist": (10, 1, "test"), "sun397": (397, 2, "test"), "gtsrb": (43, 3, "test"),
    "resisc45": (45, 18, "validation"), "dtd": (47, 8, "validation"), "eurosat": (10, 3, "test"),
    "svhn": (10, 1, "test"),
}  # fmt: skip


def read_task(name: str) -> dict:
    return yaml.safe_load((CONFIGS / "task" / "clip8" / f"{name}.yaml").read_text())


def test_the_benchmark_has_the_eight_tasks_and_an_expert_of_each_for_either_model():
    tasks = yaml.safe_load((CONFIGS / "benchmark" / "clip8.yaml").read_text())["defaults"][0]["/task/clip8"]
    assert tasks == list(CLIP8) and {file.stem for file in (CONFIGS / "task" / "clip8").iterdir()} == set(tasks)
    for model in ("clip_vit_b_32", "clip_vit_l_14"):
        released = yaml.safe_load((CONFIGS / "benchmark" / "released" / f"{model}.yaml").read_text())
        assert list(released) == tasks and len(set(released.values())) == len(tasks)


@pytest.mark.parametrize("name", CLIP8)
def test_a_task_has_the_classes_templates_and_val_of_the_published_protocol(name):
    task, (classes, templates, val) = read_task(name), CLIP8[name]
    data = build(TaskData, {"task": name, **task["data"]}, name)
    lines = task["prompt"].split("\n")
    assert len(data.classes) == classes and len(set(lines)) == templates
    assert all(line.count("{label}") == 1 and line.format(label="x") for line in lines)
    assert (data.val, data.val_of_test) == ((val, 0.0) if val == "validation" else (None, 0.2))
    assert has_val(Path("not prepared"), data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    """A dataset with pictures to train on, to test and of another split, which nobody wants."""
    files = {}
    for first, split in enumerate(("train", "test", "noisy")):
        write_parquet(tmp_path / f"{split}.parquet", [(first + number) % 3 for number in range(10)])
        files[f"data/{split}-0.parquet"] = (tmp_path / f"{split}.parquet").read_bytes()
    with serve({"ann/animals": files}) as served:
        use(monkeypatch, served.address, tmp_path / "cache")
        yield served


@cache
def compose_one_task() -> Config:
    return read_config(compose("train_all", ["tasks=[vqav2]"]))


def plan_with(runs: Path, dataset: object, **values: Any) -> Plan:
    """The plan of one task, whose data is a dataset."""
    config = compose_one_task()
    data = {
        "dataset": str(dataset),
        "train": "train",
        "test": "test",
        "question": "What?",
        "val_of_test": 0.2,
        **values,
    }
    tasks = tuple(dataclasses.replace(task, data=data) for task in config.tasks)
    return Plan(dataclasses.replace(config, tasks=tasks, paths=Paths(str(runs))))


def address_of(plan: Plan) -> Address:
    return plan.data(plan.config.tasks[0])


def test_a_dataset_of_the_hub_is_identified_by_its_commit_and_fetched_when_it_is_prepared(hub, tmp_path, monkeypatch):
    items: list[dict] = []
    monkeypatch.setattr(prepare, "run_in_turn", lambda plan, title, job, found: items.extend(found))
    plan = plan_with(tmp_path / "runs", "ann/animals")
    assert not hub.asked, "a configuration asks nobody"
    address = address_of(plan)
    assert not any(path.endswith(".parquet") for path, _ in hub.asked)
    hub.refs["main"] = OLD
    assert address_of(plan_with(tmp_path / "runs", "ann/animals")).path == address.path, "it is pinned"
    assert address_of(plan_with(tmp_path / "other", "ann/animals")).path.name != address.path.name
    assert address_of(plan_with(tmp_path / "other", f"ann/animals@{COMMIT}")).path.name == address.path.name
    assert address_of(plan_with(tmp_path / "runs", "ann/animals", test="noisy")).path != address.path
    prepare.prepare([plan])
    fetched = {Path(path).name for path, _ in hub.asked if path.startswith("/cdn/")}
    assert fetched == {"train-0.parquet", "test-0.parquet"}
    prepare.work_prepare(items[0])
    test = read_examples(address.path / "test.jsonl")
    assert address.is_complete() and len(test) == 8 and {example.answer for example in test} == set(ANIMALS)


def test_a_local_dataset_is_identified_by_its_files_and_what_is_made_of_them(tmp_path):
    source = tmp_path / "in"
    for split in ("train", "test"):
        write_parquet(source / f"{split}.parquet", [0, 1, 2])
    first = address_of(plan_with(tmp_path, source))
    assert address_of(plan_with(tmp_path, source)).path == first.path
    for values in ({"val_of_test": 0.5}, {"classes": ["cat", "seal", "dog"]}):
        assert address_of(plan_with(tmp_path, source, **values)).path != first.path
    write_parquet(source / "test.parquet", [0, 1])
    assert address_of(plan_with(tmp_path, source)).path != first.path
