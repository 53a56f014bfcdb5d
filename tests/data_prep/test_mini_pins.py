"""The drawn questions, answers and pictures of the mini benchmark are pinned by sha256.

A change here is a new benchmark: raise `GENERATOR` (data_prep/settings.py) and pin anew, before any merge is scored.
Of the training questions, each a function of its number alone, the first 300 stand for all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest
import yaml

from data_prep.mini.corpus import draw_corpus
from data_prep.mini.general import GENERAL
from data_prep.mini.tasks import GENERATORS
from data_prep.prepare import draw_task
from data_prep.settings import GENERATOR, BaseCorpus, Counts, TaskData
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import Example
from robustmerge.stage.settings import build

PINS = json.loads((REPOSITORY / "tests/golden/mini_splits.json").read_text())
TRAIN = 300
BENCHMARK = yaml.safe_load((REPOSITORY / "configs/benchmark/mini.yaml").read_text())


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fields_of(example: Example) -> dict[str, object]:
    """The fields of a question, without a category or details where it has none, as the first pins were made."""
    return {name: value for name, value in asdict(example).items() if name not in ("category", "details") or value}


def digests_of(task: str) -> dict[str, str]:
    """By split: sha256 over every question's fields and the sha256 of its pixels, in order."""
    (file,) = (REPOSITORY / "configs/task").glob(f"mini*/{task}.yaml")
    seen = yaml.safe_load(file.read_text())["seen"]
    counts = build(Counts, BENCHMARK["counts"] | ({"train": TRAIN} if seen else {"train": 0, "val": 0}), "counts")
    splits = draw_task(TaskData(task=task, generator=task, counts=counts, seed=BENCHMARK["seed"]))
    return {
        split: digest(*((fields_of(one), drawn.digest.hex()) for drawn in drawns for one in drawn.examples))
        for split, drawns in splits.items()
        if drawns
    }


def test_the_pins_are_of_this_version_of_the_generator():
    assert PINS["generator"] == GENERATOR
    assert sorted(PINS["splits"]) == sorted([*GENERATORS, *GENERAL])


@pytest.mark.parametrize("task", sorted([*GENERATORS, *GENERAL]))
def test_the_drawn_splits_are_the_pinned_ones(task):
    assert digests_of(task) == PINS["splits"][task]


def test_the_base_corpus_is_the_pinned_one():
    drawn = list(draw_corpus(BaseCorpus(images=1000, dialogues=1000, jobs=1)))
    labels = [values for pictures, _ in drawn for _, values in pictures]
    turns = [turns for _, dialogues in drawn for _, _, turns in dialogues]
    assert digest(labels, turns) == PINS["corpus"]
