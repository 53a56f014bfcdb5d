"""The eight label tasks of benchmark=clip8_mini, and the pictures with captions of the small CLIP."""

from __future__ import annotations

import hashlib
import io
import json
from random import Random

import pytest
import yaml
from PIL import Image

from data_prep import prepare as stage
from data_prep.clip import digits
from data_prep.clip.canvas import PHOTO, SIDE, WEB, Look
from data_prep.clip.corpus import PUBLISHED, describe, draw_captioned, known_classes, write_caption
from data_prep.clip.digits import MNIST, OPTICAL, Source, read_digit, split_sources
from data_prep.clip.tasks import LABEL_TASKS
from data_prep.mini import scenes
from data_prep.prepare import draw_picture, draw_task, prepare, prepare_corpus
from data_prep.settings import GENERATOR, LABEL_GENERATOR, SPLITS, CaptionCorpus, Counts, TaskData, version_of
from robustmerge.stage.address import REPOSITORY, address_folder
from robustmerge.stage.files import sha256_of
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import UserError, build

FILES = sorted((REPOSITORY / "configs/task/clip8_mini").glob("*.yaml"))
BENCHMARK = yaml.safe_load((REPOSITORY / "configs/benchmark/clip8_mini.yaml").read_text())
PINS = json.loads((REPOSITORY / "tests/golden/clip_mini.json").read_text())
DRAWN = [name for name, task in LABEL_TASKS.items() if task.make_real is None]
FEW = Counts(train=4, val=2, test=3)
CORPUS = CaptionCorpus(labelled=24, others=4, held_out=7, jobs=1)


def settings_of(name: str, counts: Counts = FEW, jobs: int = 1) -> TaskData:
    return TaskData(task=name, generator=name, counts=counts, jobs=jobs)


def pixels_of(drawn: dict) -> dict[str, list[bytes]]:
    return {split: [one.digest for one in drawn[split]] for split in SPLITS}


# The tasks


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_task_file_names_a_generator_and_has_the_class_in_every_prompt(file):
    task = yaml.safe_load(file.read_text())
    assert file.read_text().startswith(f"# @package task.{file.stem}\n# bash scripts/train_all.sh ")
    data = build(TaskData, {"task": file.stem, **task["data"]}, "data")
    assert data.generator == f"clip_{file.stem}" in LABEL_TASKS
    assert (task["seen"], task["parse"], task["metric"], task["image"]) == (True, "label", "top_1", "crop")
    assert all(line.count("{label}") == 1 for line in task["prompt"].splitlines())


def test_the_benchmark_has_a_task_for_every_generator():
    named = BENCHMARK["defaults"][0]
    assert [f"clip_{name}" for name in named["/task/clip8_mini"]] == list(LABEL_TASKS) == list(PUBLISHED)
    assert len(FILES) == len(LABEL_TASKS)


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_a_prepared_task_has_pictures_records_and_its_classes_in_order(name, tmp_path):
    settings = settings_of(name)
    folder = prepare(address_folder(tmp_path, "data", name, "prepare", 1, settings, {}), settings)
    classes = json.loads((folder / "classes.json").read_text())
    assert classes == list(LABEL_TASKS[name].classes) and len(set(classes)) == len(classes)
    for split in SPLITS:
        examples = read_examples(folder / f"{split}.jsonl")
        assert len(examples) == getattr(FEW, split)
        for example in examples:
            assert example.answer in classes and example.text == LABEL_TASKS[name].question
            with Image.open(folder / example.image) as picture:
                assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


def test_a_task_of_questions_has_no_classes(tmp_path):
    settings = settings_of("vqav2")
    folder = prepare(address_folder(tmp_path, "data", "vqav2", "prepare", 1, settings, {}), settings)
    assert not (folder / "classes.json").exists()


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_a_picture_depends_neither_on_the_counts_nor_on_the_processes(name, monkeypatch):
    few, more = draw_task(settings_of(name)), draw_task(settings_of(name, Counts(train=9, val=5, test=3)))
    assert pixels_of(few)["train"] == pixels_of(more)["train"][:4]
    assert pixels_of(few)["test"] == pixels_of(more)["test"]
    everything = [digest for digests in pixels_of(more).values() for digest in digests]
    assert len(set(everything)) == 17


def test_the_number_of_processes_does_not_matter(monkeypatch):
    monkeypatch.setattr(stage, "CHUNKS_PER_PROCESS", 1)
    assert pixels_of(draw_task(settings_of("clip_svhn", jobs=2))) == pixels_of(draw_task(settings_of("clip_svhn")))


@pytest.mark.parametrize("name", DRAWN)
def test_every_class_is_as_frequent_as_another(name):
    classes = LABEL_TASKS[name].classes
    labels = [LABEL_TASKS[name].make(Random(number), "test", number)[1] for number in range(len(classes))]
    assert labels == list(classes)


@pytest.mark.parametrize("source", [MNIST, OPTICAL], ids=lambda source: source.package)
def test_every_digit_occurs_in_every_split(source):
    for numbers in split_sources(source).values():
        assert {read_digit(source, number).name for number in numbers[:100]} == set(digits.DIGITS)


def test_a_generator_tells_its_version():
    assert version_of("clip_cars") == LABEL_GENERATOR and version_of("vqav2") == GENERATOR


# Handwriting


@pytest.mark.parametrize("source", [MNIST, OPTICAL], ids=lambda source: source.package)
def test_every_handwritten_digit_belongs_to_one_split(source):
    numbers = [number for split in split_sources(source).values() for number in split]
    assert sorted(numbers) == list(range(len(numbers)))


def test_the_digits_are_enough_for_the_benchmark():
    assert all(len(split_sources(MNIST)[split]) >= BENCHMARK["counts"][split] for split in SPLITS)
    assert len(split_sources(OPTICAL)["test"]) >= BENCHMARK["counts"]["test"]  # no digit is tested on twice


@pytest.mark.parametrize("split", SPLITS)
def test_a_house_number_shows_digits_of_its_split_only(split, monkeypatch):
    read = []
    monkeypatch.setattr(
        digits, "read_digit", lambda source, number: (read.append(number), read_digit(source, number))[1]
    )
    for number in (0, 1, 2000):
        draw_picture(settings_of("clip_svhn"), split, number)
    assert len(read) == 9 and set(read) <= set(split_sources(OPTICAL)[split])


def test_the_digits_of_mnist_are_not_used_twice():
    with pytest.raises(UserError, match="MNIST has 300 handwritten digits for val.*lower benchmark.counts.val"):
        draw_task(settings_of("clip_mnist", Counts(train=0, val=301, test=0)))


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="pip install no-such-package"):
        split_sources(Source("no_such_package", "no-such-package", "digits.csv.gz", 8, 16))


# Pins


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_the_pictures_are_the_pinned_ones(name):
    """A change here is a new benchmark: raise `LABEL_GENERATOR` (data_prep/settings.py) and pin anew."""
    task = LABEL_TASKS[name]
    drawn = [draw_picture(settings_of(name), "test", number) for number in range(len(task.classes))]
    shown = hashlib.sha256()
    for one in drawn:
        shown.update(one.digest + one.examples[0].answer.encode())
    for look in (PHOTO, WEB):
        shown.update(task.draw(Random(name), task.classes[0], look).tobytes())
    assert PINS["generator"] == LABEL_GENERATOR
    assert shown.hexdigest() == PINS["tasks"][name]


# Captions


def test_as_many_classes_are_known_as_the_paper_s_ratio_says():
    for name, (zero_shot, individual) in PUBLISHED.items():
        classes, known = LABEL_TASKS[name].classes, known_classes(name, 0)
        assert known < set(classes)
        # Those that are told apart by chance give one class in all.
        assert abs((len(known) + 1) / len(classes) - zero_shot / individual) <= 0.5 / len(classes)
    assert known_classes("clip_svhn", 0) < known_classes("clip_mnist", 0) != known_classes("clip_mnist", 1)


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_captions_name_what_is_known_of_a_task_and_every_class_in_plain_pictures(name):
    known = known_classes(name, 0)
    others = [label for label in LABEL_TASKS[name].classes if label not in known]

    def named_in(label: str, look: Look = PHOTO) -> list[str]:
        captions = [write_caption(Random(number), name, label, look, 0) for number in range(200)]
        return [one for one in {label, *others} for caption in captions if f" {one}" in caption.rstrip(".")]

    for label, look in ((next(iter(known)), PHOTO), (others[0], WEB)):
        sure = named_in(label, look)
        assert set(sure) == {label} and len(sure) > 140
    unsure = named_in(others[0])
    assert set(others) <= set(unsure) and unsure.count(others[0]) < 160 / len(others) + 30


def test_other_pictures_are_described_by_what_they_show():
    for number in range(100):
        scene = scenes.sample_icon(Random(number), "color")
        caption = describe(Random(number), scene)
        assert f"{scene.colour} {scene.icon}" in caption and caption.endswith(".")
    assert describe(Random(1), scenes.sample_icon(Random(1), "drawing")).startswith(("a drawing of", "a sketch of"))


def test_the_corpus_has_its_promised_layout_and_the_same_bytes_again(tmp_path):
    import datasets

    folders = []
    for root in (tmp_path / "once", tmp_path / "again"):
        folders.append(prepare_corpus(address_folder(root, "data", "base", "corpus", 1, CORPUS, {}), CORPUS))
    train, held_out = (datasets.load_from_disk(str(folders[0] / part)) for part in ("train", "held_out"))
    tasks = [name.removeprefix("clip_") for name in LABEL_TASKS]
    assert train.column_names == ["image", "caption", *tasks] and (len(train), len(held_out)) == (28, 7)
    sizes = json.loads((folders[0] / "heads.json").read_text())
    assert sizes == {task: len(LABEL_TASKS[f"clip_{task}"].classes) for task in tasks}
    for row in train:  # of one task at most, and there of a class that it has
        numbers = {task: row[task] for task in tasks if row[task] >= 0}
        assert len(numbers) <= 1 and all(number < sizes[task] for task, number in numbers.items())
    assert not set(train["image"]) & set(held_out["image"])
    assert Image.open(io.BytesIO(train[0]["image"])).size == (SIDE, SIDE)
    files = [{file.relative_to(folder): sha256_of(file) for file in folder.rglob("*.arrow")} for folder in folders]
    assert files[0] == files[1]


def test_no_caption_is_on_a_handwritten_digit(monkeypatch):
    monkeypatch.setattr(digits, "_read_lines", lambda source: pytest.fail("handwriting was read"))
    assert len(list(draw_captioned(CORPUS))) == 28
