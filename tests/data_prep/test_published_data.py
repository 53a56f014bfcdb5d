"""MM-MergeBench as its authors publish it, prepared and scored under both protocols. Needs no model and no Java."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.annotations import read_annotations
from data_prep.prepare import prepare
from data_prep.published_layout import find_published
from data_prep.settings import TaskData
from eval.score import score_predictions
from eval.settings import CAPTION_NAMES
from pipeline.plan import Plan
from pipeline.program import compose
from pipeline.sources import EvalSet
from pipeline.sweep import make_plans
from robustmerge.stage.address import settings_in_identity
from robustmerge.stage.records import Example, Prediction, read_examples
from robustmerge.stage.settings import UserError
from tests.published_folder import ANSWERS, CAPTIONED, FILES, QUESTIONS, write_published


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, Path]:
    return write_published(tmp_path_factory.mktemp("published"))


@lru_cache
def compose_text(*overrides: str) -> str:
    """The configuration as JSON, with placeholders for the paths."""
    places = [f"paths.{name}=/{name}" for name in ("mm_mergebench", "mm_mergebench_images", "runs")]
    return json.dumps(compose("merge_eval", ["benchmark=mm_mergebench", *places, *overrides]))


def plan_of(collection: Path, images: Path, runs: Path, *tasks: str, overrides: tuple[str, ...] = ()) -> Plan:
    text = (
        compose_text(*overrides)
        .replace("/mm_mergebench_images", str(images))
        .replace("/mm_mergebench", str(collection))
    )
    (plan,) = make_plans([{**json.loads(text.replace('"/runs"', json.dumps(str(runs)))), "tasks": list(tasks) or None}])
    return plan


@pytest.fixture(scope="module")
def plan(published, tmp_path_factory) -> Plan:
    """The plan of the tiny benchmark, its data prepared."""
    plan = plan_of(*published, tmp_path_factory.mktemp("runs"))
    for task in plan.config.tasks:
        prepare(plan.data(task), plan.config.data(task), say=lambda _: None)
    return plan


def copy_published(published: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    collection, images = to / "hub", to / "pictures"
    shutil.copytree(published[0], collection)
    shutil.copytree(published[1], images)
    return collection, images


def questions_of(plan: Plan, name: str, split: str = "test") -> list[Example]:
    task = next(task for task in plan.config.tasks if task.name == name)
    return read_examples(plan.questions(EvalSet(task, split, plan.config.protocol)))


def as_scripts_expect(collection: Path) -> None:
    """`instructions/<Task>/...`, the captions in folders of other names."""
    for kind in ("Seen_data", "Unseen_data"):
        for folder in sorted((collection / kind).iterdir()):
            name = {"VizWiz": "VizWiz-caption", "Flickr30k": "flickr30k-caption"}.get(folder.name, folder.name)
            shutil.move(folder, collection / "instructions" / name)
        (collection / kind).rmdir()


def below_instructions(collection: Path) -> None:
    for kind in ("Seen_data", "Unseen_data"):
        shutil.move(collection / kind, collection / "instructions" / kind)


def as_somebody_typed(collection: Path) -> None:
    """No folder in between, other case, and an expert's name for a task."""
    for kind in ("Seen_data", "Unseen_data"):
        for folder in sorted((collection / kind).iterdir()):
            name = {"Grounding": "rec"}.get(folder.name, folder.name.upper())
            shutil.move(folder, collection / name)
            for file in sorted((collection / name).iterdir()):
                shutil.move(file, file.with_name(file.name.capitalize()))


@pytest.mark.parametrize("rearrange", [as_scripts_expect, below_instructions, as_somebody_typed])
def test_every_layout_holds_the_same_tasks(published, plan, tmp_path, rearrange):
    collection, images = copy_published(published, tmp_path)
    (collection / "instructions").mkdir()
    rearrange(collection)
    other = plan_of(collection, images, tmp_path / "runs")
    assert {task.name: other.data(task).hash8 for task in other.config.tasks} == {
        task.name: plan.data(task).hash8 for task in plan.config.tasks
    }


@settings(max_examples=25, deadline=None)
@given(upper=st.lists(st.booleans(), min_size=30, max_size=30))
def test_case_does_not_matter(published, upper):
    name = "Seen_data/VizWiz/val_coco_type.json"
    typed = "".join(letter.upper() if up else letter.lower() for letter, up in zip(name, upper, strict=False))
    typed += name[len(typed) :]
    assert find_published([published[0]], typed, "key") == (published[0] / name).resolve()


def test_each_task_has_its_questions(plan):
    for name, (folder, *_) in FILES.items():
        examples = questions_of(plan, name)
        assert tuple(example.answer for example in examples) == ANSWERS[name]
        assert all(example.text.startswith("What is it in") for example in examples)
        assert len(questions_of(plan, name, "train")) == (2 if folder.startswith("Seen") else 0)
        assert len(questions_of(plan, name, "val")) == (1 if folder.startswith("Seen") else 0)


def test_annotations_bring_references_and_choices(plan):
    assert all(example.choices == ("left", "right") for example in questions_of(plan, "scienceqa"))
    assert all(len(example.references) == 10 for example in questions_of(plan, "vqav2"))
    for name in CAPTIONED:
        assert [example.references for example in questions_of(plan, name)] == [
            (answer, f"here is {answer}") for answer in ANSWERS[name]
        ]


def test_ids_that_are_not_unique_become_numbers(plan):
    assert [example.question_id for example in questions_of(plan, "imagenet_r")] == ["1", "2", "3"]


def score(plan: Plan, name: str, protocol: str, texts: list[str]):
    task = next(task for task in plan.config.tasks if task.name == name)
    scoring = task.under(protocol).scoring(tokenizer="builtin")
    examples = questions_of(plan, name)
    return score_predictions(
        scoring, examples, [Prediction(one.question_id, text) for one, text in zip(examples, texts, strict=True)]
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_perfect_answers_are_right_and_empty_ones_wrong_but_for_published_faults(plan, name):
    perfect, empty = list(ANSWERS[name]), [""] * QUESTIONS
    right, wrong = (score(plan, name, "corrected", texts) for texts in (perfect, empty))
    assert (right.n_scored, wrong.n_empty) == (QUESTIONS, QUESTIONS)
    assert wrong.value == 0
    if name in CAPTIONED:
        assert right.value > 100  # CIDEr
        official_score = score(plan, name, "official", perfect)
        assert official_score.value is None and "METEOR" in official_score.reason
        return
    assert right.value == pytest.approx(100)
    assert score(plan, name, "official", perfect).value == 100
    by_substring = name in ("imagenet", "imagenet_r")
    assert score(plan, name, "official", empty).value == (100 if by_substring else 0)


def test_the_share_with_a_picture_stands_beside_scienceqa(plan):
    official_score = score(plan, "scienceqa", "official", ["A", "A", "B"])
    assert official_score.value == pytest.approx(200 / 3)
    assert official_score.parts["with_picture"] == 50


def test_protocols_share_the_answers_wherever_the_published_script_pads(plan):
    test_sets = [plan.test_set(task) for task in plan.config.tasks]
    shared = {one.task.name for one in test_sets if plan.generation(one) == plan.generation(one.with_other_protocol())}
    assert shared == {"ocrvqa", "vizwiz", "flickr30k", "iconqa", "imagenet_r", "screen2words", "tabmwp"}


def test_the_mini_benchmark_asks_the_same_under_both_protocols():
    (plan,) = make_plans([compose("merge_eval", [])])
    for task in plan.config.tasks:
        test_set = plan.test_set(task)
        assert plan.generation(test_set) == plan.generation(test_set.with_other_protocol())
        assert task.under("official").metric.startswith("official_") or task.under("official").metric in CAPTION_NAMES


def test_a_benchmark_without_its_files_can_be_composed_and_disturbs_no_other(tmp_path):
    plan_of(tmp_path / "nowhere", tmp_path, tmp_path / "runs")
    (mini,) = make_plans([compose("merge_eval", [f"paths.mm_mergebench={tmp_path}/nowhere"])])
    assert all(mini.data(task).path for task in mini.config.tasks)


def test_missing_files_are_one_message_with_what_is_there_and_where_to_get_them(published, tmp_path):
    collection, images = copy_published(published, tmp_path)
    (collection / "Seen_data/VQAv2/val.json").rename(collection / "Seen_data/VQAv2/valid.json")
    (collection / "Seen_data/VQAv2/v2_mscoco_val2014_annotations.json").unlink()
    plan = plan_of(collection, images, tmp_path / "runs", "vqav2")
    with pytest.raises(UserError) as error:
        plan.data(plan.config.tasks[0])
    for part in ("no VQAv2/val.json", "valid.json", "(task.vqav2.data.annotations)", "fetch=true", "KEY=null"):
        assert part in str(error.value)
    assert str(error.value).count("raw=FOLDER fetch=true") == 1


@pytest.mark.parametrize("chosen", ["expert_set=released", "experiment=only_evaluate"])
def test_who_only_evaluates_needs_no_training_file(published, tmp_path, chosen):
    collection, images = copy_published(published, tmp_path)
    for file in collection.rglob("train*.json"):
        file.unlink()
    plan = plan_of(collection, images, tmp_path / "runs", overrides=(chosen,))
    assert all(plan.data(task).path for task in plan.config.tasks)
    assert not plan.candidates and plan.multi_task is None


def test_two_files_that_differ_are_not_chosen_between(published, tmp_path):
    collection, images = copy_published(published, tmp_path)
    shutil.copytree(collection / "Seen_data/VizWiz", collection / "instructions/VizWiz-caption")
    plan = plan_of(collection, images, tmp_path / "runs", "vizwiz")
    assert plan.data(plan.config.tasks[0]).path  # equal copies are one file
    (collection / "instructions/VizWiz-caption/val.json").write_text("[]")
    plan = plan_of(collection, images, tmp_path / "runs", "vizwiz")
    with pytest.raises(UserError, match=r"several files that differ; say which one with task\.vizwiz\.data\.test="):
        plan.data(plan.config.tasks[0])


def test_annotations_are_a_part_of_the_address_and_can_be_left_out(published, plan, tmp_path):
    collection, images = copy_published(published, tmp_path)
    file = collection / "Seen_data/VQAv2/v2_mscoco_val2014_annotations.json"
    file.write_text(file.read_text().replace("maybe", "perhaps"))
    before = next(plan.data(task).hash8 for task in plan.config.tasks if task.name == "vqav2")
    changed = plan_of(collection, images, tmp_path / "runs", "vqav2")
    (task,) = changed.config.tasks
    bare = dataclasses.replace(task, data={**task.data, "annotations": None})
    without = Plan(dataclasses.replace(changed.config, tasks=(bare,)))
    assert len({before, changed.data(task).hash8, without.data(bare).hash8}) == 3


def test_what_a_task_did_not_have_before_leaves_its_address_alone():
    assert set(settings_in_identity(TaskData(task="mine", test="t.json"))) == {"task", "generator", "counts", "seed"}


def captions_of(number: int) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(1, number + 1)],
        "annotations": [{"image_id": i, "caption": f"{i}"} for i in range(1, number + 1)],
    }


def join(examples: list[Example], path: Path) -> list[Example]:
    annotations = read_annotations(path)
    annotations.check_count(len(examples))
    return [annotations.join(number, example) for number, example in enumerate(examples, start=1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (captions_of(2), "it has 2 images, the question file 3 questions"),
        (
            {**captions_of(3), "images": captions_of(3)["images"][::-1]},
            "must have the ids 1, 2, 3 .*, got 3 as number 1",
        ),
        (
            {**captions_of(3), "images": [{"id": i, "file_name": f"{4 - i}.png"} for i in (1, 2, 3)]},
            r"question q1 is on 1\.png, image 1 in .*more\.json on 3\.png",
        ),
        ({**captions_of(3), "annotations": [{"image_id": 2, "caption": "x"}]}, r"image 1 \(1\.png\) has no caption"),
        ({"annotations": [{"question_id": "q1", "answers": [{"answer": "x"}]}]}, "question q2 is not in "),
        ({"q1": {"choices": ["x"], "answer": 0}}, "question q2 is not in "),
        ({f"q{i}": {"choices": ["x"], "answer": 1} for i in (1, 2, 3)}, "has 1 choices but no such answer"),
        ({f"q{i}": {"choices": ["x"]} for i in (1, 2, 3)}, "is damaged"),
        ({f"q{i}": {"choices": ["x", "y"], "answer": -1} for i in (1, 2, 3)}, "has 2 choices but no such answer"),
        ({f"q{i}": {"choices": ["x", "y"], "answer": True} for i in (1, 2, 3)}, "has 2 choices but no such answer"),
        ({f"q{i}": {"choices": "xy", "answer": 0} for i in (1, 2, 3)}, "a list of at most 26 choices"),
        ({f"q{i}": {"choices": ["x"] * 27, "answer": 0} for i in (1, 2, 3)}, "a list of at most 26 choices"),
        ({f"q{i}": {"choices": [None], "answer": 0} for i in (1, 2, 3)}, "a choice must be text or a number, got null"),
        ({**captions_of(3), "annotations": [{"image_id": 1, "caption": math.nan}]}, "a caption must be .*, got NaN"),
        ({"annotations": [{"question_id": "q1", "answers": [{"answer": None}]}]}, "an answer must be .*, got null"),
        ({"annotations": [{"question_id": i, "answers": []} for i in (1, 1.0)]}, "question_id is not unique"),
        (
            {"annotations": [{"question_id": f"q{i}", "answers": []} for i in (1, 2, 3)]},
            "question q1 has no answer",
        ),
        ({f"q{i}": {"choices": ["<image>", "x"], "answer": 0} for i in (1, 2, 3)}, "<image> must stand once at most"),
        ({"annotations": ["captions"]}, "expected captions in COCO's format"),
        ({"annotations": []}, "expected captions in COCO's format"),
        ([], "expected '{'"),
    ],
)
def test_annotations_that_do_not_fit_the_questions_are_refused(tmp_path, content, message):
    (tmp_path / "more.json").write_text(json.dumps(content))
    examples = [Example(f"q{i}", "What?", "x", image=f"{i}.png") for i in (1, 2, 3)]
    with pytest.raises((UserError, TypeError, ValueError), match=message):
        join(examples, tmp_path / "more.json")


def test_the_letter_of_the_annotations_is_the_only_one_that_counts(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps({"q": {"choices": ["x", "y"], "answer": 1}}))
    example = Example("q", "What?", "A", references=("A",), choices=("x", "y"))
    (joined,) = join([example], tmp_path / "problems.json")
    assert joined.accepted == ("B",)
    with pytest.raises(ValueError, match="question q has other choices in its question file"):
        join([dataclasses.replace(example, choices=("y", "x"))], tmp_path / "problems.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '"\\ud800"', "{", "\xff"])
def test_annotations_that_are_no_json_are_named(tmp_path, text):
    (tmp_path / "more.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"more\.json"):
        read_annotations(tmp_path / "more.json")


def test_annotations_need_a_test_file_and_ids_a_known_rule():
    with pytest.raises(UserError, match="annotations are on test questions"):
        TaskData(task="mine", train="t.json", annotations="a.json")
    with pytest.raises(UserError, match="unknown rule 'numbers'.*did you mean 'number'"):
        TaskData(task="mine", test="t.json", ids="numbers")


def test_the_missing_files_of_all_tasks_are_one_message(published, tmp_path):
    collection, images = copy_published(published, tmp_path)
    for missing in ("Seen_data/ScienceQA/test.json", "Seen_data/IconQA/val.json"):
        (collection / missing).unlink()
    plan = plan_of(collection, images, tmp_path / "runs")
    with pytest.raises(UserError) as error:
        plan.data(plan.config.tasks[0])
    assert "(task.scienceqa.data.test)" in str(error.value) and "(task.iconqa.data.test)" in str(error.value)


def test_a_question_with_references_needs_no_answer_beside_them(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"question_id": 1, "text": "?", "references": ["a cat", "one cat"]}]))
    (example,) = read_examples(tmp_path / "q.json")
    assert example.answer == "a cat" and example.accepted == ("a cat", "one cat")
