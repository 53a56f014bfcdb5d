"""Small raw folders of the owners' releases, one module of `tests.data_prep.raw` each, converted and prepared."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from data_prep.faults import REJECTED
from data_prep.prepare import prepare
from data_prep.rows import iterate_rows
from data_prep.settings import Release, TaskData
from robustmerge.stage.address import REPOSITORY, address_folder, address_foreign
from robustmerge.stage.json_stream import Element
from robustmerge.stage.records import Example, read_examples


@dataclass(frozen=True)
class Prepared:
    """A prepared task: its examples by split and id, what is said of the rows that were refused, and its folder."""

    examples: dict[str, dict[str, Example]]
    rejected: list[dict[str, Any]]
    folder: Path


def raw_of(name: str) -> ModuleType:
    """What writes the raw folder of a release, and what is expected of its rows."""
    return importlib.import_module(f"tests.data_prep.raw.{name}")


@cache
def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"configs/task/mm_mergebench/{name}.yaml").read_text())


def settings_of(raw: Path, name: str, **splits: str) -> TaskData:
    """splits: of the release, by those of the task."""
    release = Release(name=name, **splits)
    return TaskData(task=name, source="release", release=release, collection=str(raw), most_rejected=0.9)


def convert(raw: Path, name: str, split: str) -> list[Element]:
    """The rows of a split of a release."""
    settings = settings_of(raw, name, test=split)
    return list(iterate_rows(settings, "test", settings.input_files["test"]))


def prepare_release(raw: Path, runs: Path, name: str, **splits: str) -> Prepared:
    settings = settings_of(raw, name, **splits)
    files = {f"{split} {file.name}": file for split, files in settings.input_files.items() for file in files}
    inputs = {key: address_foreign(file) for key, file in files.items()}
    folder = prepare(address_folder(runs, "data", name, "prepare", 1, settings, inputs), settings, lambda _: None)
    examples = {
        split: {example.question_id: example for example in read_examples(folder / f"{split}.jsonl")}
        for split in ("train", "val", "test")
    }
    return Prepared(examples, list(map(json.loads, (folder / REJECTED).read_text().splitlines())), folder)
