"""A user's question files and images in the prepare stage. Needs nothing beyond Pillow."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from data_prep.prepare import prepare
from data_prep.rows import list_pictures
from data_prep.settings import Counts, TaskData
from robustmerge.stage.address import Address, address_folder, address_foreign, read_manifest
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import UserError


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(path)


def write_questions(path: Path, number: int, folder: str = "pictures") -> None:
    """A LLaVA question file, first half as plain questions, second half as conversations."""
    records = [
        {"question_id": f"{path.stem}{i}", "image": f"./{folder}/{i}.png", "text": "<image>\nWhat?", "answer": str(i)}
        for i in range(number)
    ]
    for record in records[number // 2 :]:
        texts = [record.pop("text"), record.pop("answer"), "And?", "so"]
        record["conversations"] = [{"from": "human" if i % 2 == 0 else "gpt", "value": v} for i, v in enumerate(texts)]
    path.write_text(json.dumps(records))


@pytest.fixture
def task(tmp_path) -> TaskData:
    for index in range(30):
        picture(tmp_path / f"in/pictures/{index}.png", index)
    write_questions(tmp_path / "in/train.json", 30)
    write_questions(tmp_path / "in/test.json", 5)
    return TaskData(task="mine", train=str(tmp_path / "in/train.json"), test=str(tmp_path / "in/test.json"))


def address_of(root: Path, settings: TaskData) -> Address:
    inputs = {split: address_foreign(file) for split, (file,) in settings.input_files.items()}
    return address_folder(root, "data", settings.task, "prepare", 1, settings, inputs)


def test_questions_and_images_are_copied(task, tmp_path):
    folder = prepare(address_of(tmp_path / "runs", task), task)
    test = read_examples(folder / "test.jsonl")
    assert test == read_examples(folder / "test.json")
    assert [example.image for example in test] == [f"images/pictures/{index}.png" for index in range(5)]
    assert all((folder / example.image).is_file() and example.size == (6, 4) for example in test)
    assert test[0].text == "What?" and test[4].turns == (("And?", "so"),)


def test_without_a_val_file_a_recorded_part_of_train_serves_as_val(task, tmp_path):
    address = address_of(tmp_path / "runs", task)
    messages: list[str] = []
    folder = prepare(address, task, messages.append)
    val = [example.question_id for example in read_examples(folder / "val.jsonl")]
    train = [example.question_id for example in read_examples(folder / "train.jsonl")]
    assert len(val) == 3 and sorted(train + val) == sorted(f"train{index}" for index in range(30))
    assert read_manifest(address.manifest)["record"]["val_cut_from_train"] == val
    assert any(
        "3 of 30 examples of train serve as val (whole pictures with all their questions" in message
        for message in messages
    )


def test_the_cut_depends_on_the_seed_and_is_bounded_by_the_count(task, tmp_path):
    cuts = []
    for seed, count in ((0, 200), (0, 200), (1, 200), (0, 2)):
        settings = TaskData(task="mine", train=task.train, seed=seed, counts=Counts(val=count))
        folder = prepare(address_of(tmp_path / f"runs{len(cuts)}", settings), settings)
        cuts.append([example.question_id for example in read_examples(folder / "val.jsonl")])
    assert cuts[0] == cuts[1] != cuts[2] and len(cuts[3]) == 2


def test_a_val_file_is_used_whole_and_nothing_is_cut(task, tmp_path):
    write_questions(tmp_path / "in/val.json", 4)
    settings = TaskData(task="mine", train=task.train, val=str(tmp_path / "in/val.json"), test=task.test)
    address = address_of(tmp_path / "runs", settings)
    folder = prepare(address, settings)
    assert len(read_examples(folder / "val.jsonl")) == 4 and len(read_examples(folder / "train.jsonl")) == 30
    assert "val_cut_from_train" not in read_manifest(address.manifest)["record"]


def test_images_may_lie_in_a_folder_of_their_own(task, tmp_path):
    (tmp_path / "in/pictures").rename(tmp_path / "elsewhere")
    write_questions(tmp_path / "in/test.json", 5, folder="")
    settings = TaskData(task="mine", test=task.test, images=str(tmp_path / "elsewhere"))
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    assert read_examples(folder / "test.jsonl")[3].image == "images/3.png"
    assert read_examples(folder / "train.jsonl") == []


def test_missing_images_are_one_message_with_the_first_and_their_number(task, tmp_path):
    for index in range(10, 30):
        (tmp_path / f"in/pictures/{index}.png").unlink()
    address = address_of(tmp_path / "runs", task)
    with pytest.raises(UserError) as error:
        prepare(address, task)
    assert "20 of 30 rows of train cannot be used (missing picture: 20), and none" in str(
        error.value
    ) and "(and 15 more)" in str(error.value)
    assert str(error.value).count("does not exist") == 5 and "10.png does not exist" in str(error.value)
    assert not address.is_complete()


def test_a_file_that_is_no_image_is_refused(task, tmp_path):
    (tmp_path / "in/pictures/2.png").write_text("no image")
    with pytest.raises(UserError, match=r"unreadable picture: 1\).*\n.*2.png: it is no picture"):
        prepare(address_of(tmp_path / "runs", task), task)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_picture_cut_short_is_refused(task, tmp_path, monkeypatch, kind, jobs):
    monkeypatch.setattr("data_prep.importing.IMAGES_FOR_A_POOL", 1)
    whole = tmp_path / f"whole.{kind}"
    Image.effect_noise((64, 64), 50.0).save(whole)
    (tmp_path / "in/pictures/2.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match=r"unreadable picture: 1\).*\n.*2\.png: .*truncated"):
        settings = dataclasses.replace(task, jobs=jobs)
        prepare(address_of(tmp_path / "runs", settings), settings)


def test_editing_a_picture_in_place_does_not_change_what_is_prepared(task, tmp_path):
    folder = prepare(address_of(tmp_path / "runs", task), task)
    before = (folder / "images/pictures/2.png").read_bytes()
    with open(tmp_path / "in/pictures/2.png", "r+b") as file:
        file.write(b"changed")
    assert (folder / "images/pictures/2.png").read_bytes() == before


def test_a_read_only_picture_is_linked(task, tmp_path):
    (tmp_path / "in/pictures/2.png").chmod(0o444)
    folder = prepare(address_of(tmp_path / "runs", task), task)
    linked = [i for i in range(30) if (folder / f"images/pictures/{i}.png").stat().st_nlink > 1]
    assert linked == [2]


def test_an_image_outside_its_folder_is_refused(task, tmp_path):
    record = {"question_id": "q", "image": "../secret.png", "text": "What?", "answer": "x"}
    (tmp_path / "in/test.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=r"\.\./secret\.png lies outside"):
        prepare(address_of(tmp_path / "runs", task), task)


def test_a_picture_and_a_folder_of_pictures_of_one_name_are_refused_with_nothing_written(tmp_path):
    picture(tmp_path / "one/a.png")
    picture(tmp_path / "two/a.png/deep/b.png")
    for folder, image in (("one", "a.png"), ("two", "a.png/deep/b.png")):
        record = {"question_id": "q", "image": image, "text": "What?", "answer": "x"}
        (tmp_path / folder / "t.json").write_text(json.dumps([record]))
    settings = TaskData(task="mine", train=str(tmp_path / "one/t.json"), test=str(tmp_path / "two/t.json"))
    address = address_of(tmp_path / "runs", settings)
    with pytest.raises(UserError, match=r"one/a\.png and a folder of .*b\.png have the same name; give data\.images"):
        prepare(address, settings)
    assert not address.path.exists()


@pytest.mark.parametrize("image", [".copy.part", ".a.part/0.png"])
def test_a_picture_that_would_be_removed_as_unfinished_is_refused(task, tmp_path, image):
    picture(tmp_path / "in" / image / "0.png")
    record = {"question_id": "q", "image": image, "text": "What?", "answer": "x"}
    (tmp_path / "in/test.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=f"{image} has a name of unfinished files"):
        prepare(address_of(tmp_path / "runs", task), task)


def test_no_path_is_longer_than_the_prepared_file_may_name(task, tmp_path):
    folders = "/".join(["d" * 200] * 4) + "/"
    image = folders + "p" * (996 - len(folders)) + ".png"
    record = {"question_id": "q", "image": image, "text": "What?", "answer": "x"}
    (tmp_path / "in/test.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match="is too long: images/ and the path may have 1000 characters"):
        prepare(address_of(tmp_path / "runs", task), task)


@pytest.mark.parametrize("image", ["/etc/passwd", "pictures/../../secret.png", ".", "x" * 300, "pipe", "loop"])
def test_no_name_leads_out_of_the_images_or_to_anything_but_a_file(task, tmp_path, image):
    os.mkfifo(tmp_path / "in/pipe")
    (tmp_path / "in/loop").symlink_to("loop")
    record = {"question_id": "q", "image": image, "text": "What?", "answer": "x"}
    (tmp_path / "in/test.json").write_text(json.dumps([record]))
    address = address_of(tmp_path / "runs", task)
    assert image in list_pictures(task)
    with pytest.raises(UserError, match="missing picture: 1"):
        prepare(address, task)
    assert not address.path.exists()


def test_links_out_of_the_images_are_followed_and_said(task, tmp_path):
    (tmp_path / "in/pictures").rename(tmp_path / "elsewhere")
    (tmp_path / "in/pictures").symlink_to(tmp_path / "elsewhere")
    messages: list[str] = []
    folder = prepare(address_of(tmp_path / "runs", task), task, messages.append)
    (message,) = (message for message in messages if "links" in message)
    assert "data.images: 30, as" in message and message.endswith(f"0.png -> {tmp_path}/elsewhere/0.png")
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_a_refused_task_leaves_nothing_and_is_prepared_once_it_is_right(task, tmp_path):
    questions = (tmp_path / "in/test.json").read_text()
    (tmp_path / "in/test.json").write_text(questions.replace('"test3"', '"\\ud800"'))
    with pytest.raises(UserError, match="half of a surrogate pair"):
        prepare(address_of(tmp_path / "runs", task), task)
    assert not list((tmp_path / "runs").rglob("images"))
    (tmp_path / "in/test.json").write_text(questions)
    assert len(read_examples(prepare(address_of(tmp_path / "runs", task), task) / "test.jsonl")) == 5


def test_answers_that_cannot_be_compared_are_refused_with_their_record(task, tmp_path):
    address = address_of(tmp_path / "runs", task)
    with pytest.raises(UserError, match=r"test\.json, record 3: question test2: no letter"):
        prepare(address, task, check=lambda split, one: "no letter" if (split, one.answer) == ("test", "2") else "")
    assert not address.path.exists()


def test_an_empty_question_file_is_refused(task, tmp_path):
    (tmp_path / "in/test.json").write_text("[]")
    with pytest.raises(UserError, match="no examples in .*test.json"):
        prepare(address_of(tmp_path / "runs", task), task)


def test_questions_without_images_are_taken(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question_id": "1", "text": "Why?", "answer": "so"}\n')
    settings = TaskData(task="mine", test=str(tmp_path / "t.jsonl"))
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    assert read_examples(folder / "test.jsonl")[0].image is None


def test_the_address_follows_the_contents_of_the_question_files_not_their_place(task, tmp_path):
    before = address_of(tmp_path / "runs", task).hash8
    (tmp_path / "moved").mkdir()
    for name in ("train.json", "test.json"):
        (tmp_path / "moved" / name).write_text((tmp_path / "in" / name).read_text())
    moved = TaskData(task="mine", train=str(tmp_path / "moved/train.json"), test=str(tmp_path / "moved/test.json"))
    assert address_of(tmp_path / "runs", moved).hash8 == before
    write_questions(tmp_path / "in/test.json", 4)
    assert address_of(tmp_path / "runs", task).hash8 != before


def test_the_pictures_in_an_address_are_those_of_the_questions_with_their_sizes(task, tmp_path):
    (tmp_path / "in/pictures/29.png").unlink()
    sizes = list_pictures(task)
    assert sizes.keys() == {example.image for example in read_examples(Path(task.train))}
    assert sizes["./pictures/29.png"] == -1
    assert sizes["./pictures/3.png"] == (tmp_path / "in/pictures/3.png").stat().st_size
