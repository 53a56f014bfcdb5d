"""The drawn general questions: what each set asks about its pictures. Needs nothing."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import yaml

from data_prep.mini.dialogues import TAGS
from data_prep.mini.general import GENERAL, POPULAR, SUBTASKS, make_mmbench_like, make_mme_like, make_pope_like
from data_prep.mini.scenes import ICONS, SHAPES
from data_prep.mini.statements import list_statements, with_article
from data_prep.mini.tasks import GENERATORS
from data_prep.prepare import draw_task
from data_prep.settings import Counts, TaskData
from eval.settings import Task
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import build

SEEDS = range(300)


def test_a_picture_is_asked_once_about_what_it_shows_and_once_about_what_it_does_not() -> None:
    kinds = Counter()
    for seed in SEEDS:
        scene, (shown, absent) = make_pope_like(Random(seed))
        names = {f"Is there {with_article(name)} in the picture?": name for name in (*ICONS, *SHAPES)}
        named, kind = names[absent["text"]], absent["category"]
        assert names[shown["text"]] == (scene.icon or scene.shape) != named
        assert (shown["answer"], absent["answer"], shown["category"]) == ("yes", "no", kind)
        kinds[kind] += 1
        assert kind != "popular" or named in POPULAR
        assert kind != "adversarial" or (named in ICONS) == bool(scene.icon)
    assert kinds.keys() == {"random", "popular", "adversarial"} and min(kinds.values()) > len(SEEDS) / 5


def test_the_two_questions_of_a_picture_are_on_one_subtask_and_the_first_is_true() -> None:
    categories = Counter()
    for seed in SEEDS:
        scene, questions = make_mme_like(Random(seed))
        (category,) = {question["category"] for question in questions}
        categories[category] += 1
        statements = [one for wording in range(20) for one in list_statements(Random(wording), scene)]
        statements = [one for one in statements if one.concept in SUBTASKS[category].concepts]
        asked = {
            form.format(value=value, a=with_article(value)): "yes" if value == one.right else "no"
            for one in statements for form in one.forms for value in one.values
        }  # fmt: skip
        assert [asked[question["text"]] for question in questions] == ["yes", "no"]
        assert [question["answer"] for question in questions] == ["yes", "no"]
    assert categories.keys() == SUBTASKS.keys() and min(categories.values()) > len(SEEDS) / 10


def test_a_question_is_asked_in_every_rotation_and_each_letter_is_right_once() -> None:
    for seed in SEEDS:
        scene, questions = make_mmbench_like(Random(seed))
        first = questions[0]["choices"]
        right = {question["choices"]["ABCD".index(question["answer"])] for question in questions}
        assert [question["choices"] for question in questions] == [(*first[n:], *first[:n]) for n in range(4)]
        assert sorted(question["answer"] for question in questions) == list("ABCD") and len(set(first)) == 4
        assert len(right) == 1 and right < {scene.icon, scene.shape, scene.colour, scene.material}


@pytest.mark.parametrize("name", GENERAL)
def test_a_set_has_as_many_questions_as_asked_for_or_the_rest_of_a_picture_more(name: str) -> None:
    pictures = draw_task(TaskData(name, name, Counts(0, 0, 21)))["test"]
    assert {len(picture.examples) for picture in pictures} == {GENERAL[name].questions}
    examples = [one for picture in pictures for one in picture.examples]
    assert 21 <= len(examples) < 21 + GENERAL[name].questions
    assert len({one.question_id for one in examples}) == len(examples)


def test_every_set_has_a_file_whose_name_and_title_say_that_it_is_only_like_its_benchmark() -> None:
    files = sorted((REPOSITORY / "configs/task/mini_general").glob("*.yaml"))
    assert [file.stem for file in files] == sorted(GENERAL) and not GENERAL.keys() & GENERATORS.keys()
    for file in files:
        first, second, *_ = file.read_text().splitlines()
        assert first == f"# @package task.{file.stem}"
        assert second == f"# bash scripts/merge_eval.sh +task/mini_general={file.stem}"
        task = build(Task, {"name": file.stem, **yaml.safe_load(file.read_text())}, file.stem)
        assert task.general and task.title == f"{task.mirrors}-like" and task.data == {"generator": file.stem}
        assert task.prompt.endswith(TAGS[0])  # as the base's dialogues ask
