"""The example of a task of one's own: its questions are right, balanced, and read as any user's files are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_prep.prepare import prepare
from data_prep.settings import TaskData
from data_prep.shapes import COLOURS, COUNTS, SHAPES, SIDE, write_task
from pipeline.config import read_config
from pipeline.program import compose
from robustmerge.stage.address import Address
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import build

FORMS = ("Is there an? (?:{shapes})", "Is there anything", "Is there an? (?:{colours}) ", "Is the ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_task(folder, {"train": 300, "test": 100})
    return folder


def test_each_form_of_question_is_answered_yes_half_of_the_time(folder):
    questions = json.loads((folder / "train.json").read_text())
    assert Counter(one["answer"] for one in questions) == {"yes": 150, "no": 150}
    for form in FORMS:
        pattern = form.format(shapes="|".join(SHAPES), colours="|".join(COLOURS))
        answers = [one["answer"] for one in questions if re.match(pattern, one["text"])]
        assert len(answers) > 50
        assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_a_question_about_a_colour_is_answered_by_the_pixels(folder):
    asked = [one for one in json.loads((folder / "train.json").read_text()) if "anything" in one["text"]]
    for one in asked:
        colours = {colour for _, colour in Image.open(folder / one["image"]).getcolors(SIDE * SIDE)}
        (colour,) = (COLOURS[name] for name in COLOURS if name in one["text"])
        assert (one["answer"] == "yes") == (colour in colours)


def test_more_questions_change_no_other_and_no_picture(folder, tmp_path):
    write_task(tmp_path, {"train": 10, "test": 5})
    for split, count in (("train", 10), ("test", 5)):
        few, many = (json.loads((one / f"{split}.json").read_text()) for one in (tmp_path, folder))
        assert few == many[:count]
    assert all(path.read_bytes() == (folder / "images" / path.name).read_bytes() for path in tmp_path.glob("images/*"))


def test_the_prepare_stage_reads_the_files_as_those_of_any_user(folder, tmp_path):
    files = {split: str(folder / f"{split}.json") for split in COUNTS}
    prepared = prepare(Address(tmp_path, tmp_path / "data", {}), TaskData("shapes", **files), lambda _: None)
    train, val, test = (read_examples(prepared / f"{split}.jsonl") for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (270, 30)
    asked = [(one["text"], one["answer"]) for one in json.loads((folder / "test.json").read_text())]
    assert [(one.text, one.answer) for one in test] == asked


def test_the_task_is_added_to_the_benchmark_and_is_no_part_of_it():
    assert "shapes" not in {task.name for task in read_config(compose("train_all", [])).tasks}
    alone = read_config(compose("merge_eval", ["experiment=expert_only", "+task=shapes", "tasks=[shapes]"]))
    (task,) = alone.tasks
    assert task.seen and not alone.methods and not alone.multi_task
    data = build(TaskData, {"task": "shapes", **task.data}, "task.shapes.data")
    assert (data.train, data.test) == ("data/shapes/train.json", "data/shapes/test.json")
