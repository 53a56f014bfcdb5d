"""docs/evaluation.md says what the configuration does, and its example of a task is one. Needs nothing."""

from __future__ import annotations

import re

import yaml

from data_prep.settings import TaskData
from eval.settings import Task
from pipeline.config import read_config
from pipeline.program import compose
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.prompts import render
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import build

PAGE = (REPOSITORY / "docs/evaluation.md").read_text()


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_table_of_tasks_is_that_of_the_configuration():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.count("|") == 8]
    told = {row[0]: row[2:] for row in rows}
    for task in read_config(compose("merge_eval", ["benchmark=mm_mergebench"])).tasks:
        official = task.under("official")
        shared = task.generation("t", 1) == official.generation("t", 1)
        limits = str(task.max_new_tokens), f"`{official.metric}`", str(official.max_new_tokens)
        assert told.pop(task.title) == [*limits, official.image, "yes" if shared else "no"]
        assert task.image == "pad"
    assert told.keys() == {"task", "---"}


def test_the_example_of_a_task_is_one_and_asks_the_example_of_a_question(tmp_path):
    described = yaml.safe_load(example("yaml"))
    task = build(Task, {"name": "mine", **described}, "task.mine")
    build(TaskData, {"task": "mine", **task.data}, "task.mine.data")
    (tmp_path / "test.jsonl").write_text(example("json"))
    (question,) = read_examples(tmp_path / "test.jsonl")
    assert render(task.prompt, question).startswith("What is on the table?\nA. fork\nB. knife\n")
