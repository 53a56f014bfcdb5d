"""The mini benchmark: its drawing, its twelve task families and its prepare stage. Needs nothing beyond Pillow."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from random import Random

import pytest
import yaml
from PIL import Image, ImageChops

from data_prep import prepare as stage
from data_prep.mini import scenes
from data_prep.mini.drawing import draw
from data_prep.mini.tasks import GENERATORS, NUMBERS, SYNONYMS
from data_prep.prepare import check_no_shared_image, draw_picture, draw_task, prepare
from data_prep.settings import SPLITS, Counts, TaskData
from eval.settings import Task
from robustmerge.stage.address import REPOSITORY, Address, address_folder
from robustmerge.stage.files import sha256_of
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import ConfigError, UserError, build

FILES = sorted((REPOSITORY / "configs/task/mini").glob("*.yaml"))
SEEN = ("scienceqa", "imagenet", "vqav2", "rec", "ocrvqa", "vizwiz", "flickr30k", "iconqa")
UNSEEN = ("aokvqa", "imagenet_r", "screen2words", "tabmwp")
COUNTS = Counts(train=40, val=10, test=25)
BOX = re.compile(r"\[\d\.\d\d,\d\.\d\d,\d\.\d\d,\d\.\d\d\]")


def settings_of(task: str, seed: int = 0, counts: Counts = COUNTS, jobs: int = 1) -> TaskData:
    return TaskData(task=task, generator=task, seed=seed, counts=counts, jobs=jobs)


def address_of(root: Path, settings: TaskData) -> Address:
    return address_folder(root, "data", settings.task, "prepare", 1, settings, {})


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every task prepared once."""
    root = tmp_path_factory.mktemp("runs")
    settings = {task: settings_of(task) for task in GENERATORS}
    return {task: prepare(address_of(root, settings[task]), settings[task]) for task in GENERATORS}


def test_the_twelve_tasks_have_a_file_and_a_generator_each():
    assert [file.stem for file in FILES] == sorted(GENERATORS) == sorted(SEEN + UNSEEN)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_task_file_describes_a_task_that_can_be_drawn(file):
    first, second, *_ = file.read_text().split("\n")
    assert first == f"# @package task.{file.stem}"
    assert second.startswith("# bash scripts/") and file.stem in second
    task = build(Task, {"name": file.stem, **yaml.safe_load(file.read_text())}, f"task.{file.stem}")
    assert task.seen == (file.stem in SEEN)
    assert build(TaskData, {"task": task.name, **task.data}, "data").generator in GENERATORS
    assert ("{choices}" in task.prompt) == (file.stem in ("scienceqa", "aokvqa"))


@pytest.mark.parametrize("task", GENERATORS)
def test_no_picture_occurs_twice_in_a_task(folders, task):
    images = sorted((folders[task] / "images").iterdir())
    pixels = {hashlib.sha256(Image.open(image).convert("RGB").tobytes()).digest() for image in images}
    assert len(images) == len(pixels) == COUNTS.train + COUNTS.val + COUNTS.test
    assert {image.name.split("_")[0] for image in images} == set(SPLITS)


def test_a_picture_that_comes_again_is_drawn_again(monkeypatch):
    def few(rng):
        scene = scenes.sample_object(Random(rng.randrange(100)))
        return scene, {"text": "What?", "answer": scene.colour}

    monkeypatch.setitem(GENERATORS, "vqav2", few)
    splits = draw_task(settings_of("vqav2"))
    check_no_shared_image(splits)
    twice = [drawn for split in SPLITS for drawn in splits[split] for _ in range(2)]
    with pytest.raises(AssertionError, match="75 pictures occur twice"):
        check_no_shared_image({"train": twice})


@pytest.mark.parametrize("task", GENERATORS)
def test_a_seed_gives_the_same_bytes_again_and_another_seed_gives_others(folders, task, tmp_path):
    again, other = settings_of(task), settings_of(task, seed=1)
    assert bytes_of(prepare(address_of(tmp_path, again), again)) == bytes_of(folders[task])
    shared = set(bytes_of(folders[task]).values()) & set(bytes_of(prepare(address_of(tmp_path, other), other)).values())
    assert not shared


def test_the_number_of_processes_does_not_matter(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNKS_PER_PROCESS", 1)
    settings = settings_of("vizwiz", jobs=2)
    assert address_of(tmp_path, settings).hash8 == address_of(tmp_path, settings_of("vizwiz")).hash8
    assert bytes_of(prepare(address_of(tmp_path, settings), settings)) == bytes_of(folders["vizwiz"])


def test_the_test_split_does_not_depend_on_the_other_counts(folders):
    splits = draw_task(settings_of("rec", counts=Counts(train=0, val=0, test=COUNTS.test)))
    assert [one for drawn in splits["test"] for one in drawn.examples] == read_examples(folders["rec"] / "test.jsonl")
    assert splits["train"] == splits["val"] == []


def test_a_task_with_test_questions_only_has_empty_train_and_val_files(tmp_path):
    settings = settings_of("tabmwp", counts=Counts(train=0, val=0, test=3))
    folder = prepare(address_of(tmp_path, settings), settings)
    lengths = {split: len(read_examples(folder / f"{split}.jsonl")) for split in SPLITS}
    assert lengths == {"train": 0, "val": 0, "test": 3}
    assert read_examples(folder / "train.json") == []


def test_an_interrupted_run_ends_with_the_same_bytes(folders, tmp_path):
    settings = settings_of("ocrvqa")
    address = address_of(tmp_path, settings)
    (address.path / "images").mkdir(parents=True)
    (address.path / "images/train_00000.png").write_bytes(b"cut")
    (address.path / "test.jsonl").write_text('{"question_id": "cut')
    assert bytes_of(prepare(address, settings)) == bytes_of(folders["ocrvqa"])


@pytest.mark.parametrize("task", GENERATORS)
def test_the_question_file_in_llavas_format_says_the_same_as_the_json_lines(folders, task):
    for split in SPLITS:
        lines = read_examples(folders[task] / f"{split}.jsonl")
        assert read_examples(folders[task] / f"{split}.json") == lines
        for example in lines:
            assert "<image>" not in example.text
            with Image.open(folders[task] / example.image) as picture:
                assert (picture.size, picture.mode) == ((scenes.SIDE, scenes.SIDE), "RGB")


@pytest.mark.parametrize("task", ["scienceqa", "aokvqa"])
def test_the_letter_names_the_right_option(task):
    for index in range(200):
        scene, fields = GENERATORS[task](Random(index))
        right = scene.material if task == "scienceqa" else scene.shape
        assert fields["choices"]["ABCD".index(fields["answer"])] == right


def test_boxes_are_inside_the_square_and_around_the_object():
    for index in range(200):
        scene, fields = GENERATORS["rec"](Random(index))
        assert BOX.fullmatch(fields["answer"]) and fields["size"] == (scenes.SIDE, scenes.SIDE)
        edges = [float(edge) for edge in fields["answer"].strip("[]").split(",")]
        assert 0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1
        assert all(edge % scenes.GRID == 0 for edge in scene.box)
        paper = Image.new("RGB", (scenes.SIDE, scenes.SIDE), scene.paper)
        drawn = ImageChops.difference(draw(scene), paper).point(lambda value: 255 * (value > 24)).getbbox()
        assert all(abs(side - edge) <= 2 for side, edge in zip(drawn, scene.box, strict=True)), scene


@pytest.mark.parametrize("task", ["iconqa", "tabmwp"])
def test_counts_are_digits_and_right(task):
    for index in range(200):
        scene, fields = GENERATORS[task](Random(index))
        colour = next((mark for mark in scenes.MARKS if mark in fields["text"]), None)
        assert fields["answer"] == str(scene.count(colour)) and fields["answer"] in "123456789"
        assert "  " not in fields["text"]


@pytest.mark.parametrize("task", ["vizwiz", "flickr30k", "screen2words"])
def test_captions_have_four_different_references_that_fit_the_scene(task):
    for index in range(200):
        scene, fields = GENERATORS[task](Random(index))
        assert len(set(fields["references"])) == 4 and fields["answer"] == fields["references"][0]
        for caption in fields["references"]:
            assert scene.shape in caption and scene.colour in caption
            assert (task == "vizwiz") == any(quality in caption for quality in scenes.QUALITIES)


def test_the_two_caption_tasks_of_one_prompt_differ_in_their_pictures():
    assert {GENERATORS["vizwiz"](Random(index))[0].quality for index in range(50)} == set(scenes.QUALITIES[1:])
    assert {GENERATORS["flickr30k"](Random(index))[0].quality for index in range(50)} == {"clear"}


def test_names_and_titles_are_of_their_lists():
    for index in range(100):
        for task, rendition in (("imagenet", "color"), ("imagenet_r", "drawing")):
            scene, fields = GENERATORS[task](Random(index))
            assert fields["answer"] == scene.icon in scenes.ICONS and scene.rendition == rendition
        scene, fields = GENERATORS["ocrvqa"](Random(index))
        assert fields["answer"].split() == list(scene.letters)


def test_drawings_have_no_colour():
    picture = draw(GENERATORS["imagenet_r"](Random(0))[0])
    assert all(red == green == blue for _, (red, green, blue) in picture.getcolors(scenes.SIDE**2))


def test_ten_people_answer_and_most_say_the_training_target():
    for index in range(200):
        _, fields = GENERATORS["vqav2"](Random(index))
        assert len(fields["references"]) == 10 and fields["references"].count(fields["answer"]) >= 8


def test_answer_words_of_different_tasks_do_not_collide():
    groups = [scenes.ICONS, scenes.SHAPES, tuple(scenes.COLOURS), scenes.MATERIALS, tuple(scenes.SIZES), scenes.PLACES]
    groups += [NUMBERS, scenes.QUALITIES[1:], tuple(scenes.LETTERS), tuple("ABCDE"), ("yes", "no")]
    groups += [tuple(SYNONYMS.values())]
    words = [word for group in groups for word in group]
    assert len(words) == len(set(words))


def test_a_picture_depends_on_its_number_alone():
    drawn = [draw_picture(settings_of("vqav2"), "train", index) for index in (5, 3, 5)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_an_unknown_generator_is_refused_with_the_choices(tmp_path):
    settings = TaskData(task="mine", generator="vqav3")
    with pytest.raises(UserError, match="unknown generator 'vqav3'.*did you mean 'vqav2'"):
        prepare(address_of(tmp_path, settings), settings)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="train must be at least 0, got -1"):
        Counts(train=-1)
    with pytest.raises(ConfigError, match="either a generator or files"):
        TaskData(task="mine", generator="vqav2", test="test.json")
    with pytest.raises(ConfigError, match="give a generator"):
        TaskData(task="mine")
