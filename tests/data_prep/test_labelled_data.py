"""Datasets of labelled pictures in the prepare stage: parquet files and class folders. Needs Pillow and pyarrow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_prep.labelled_pictures import CLASSES, list_sizes
from data_prep.prepare import prepare
from data_prep.settings import SPLITS, Counts, TaskData
from robustmerge.stage.address import Address, address_folder
from robustmerge.stage.records import Example, read_examples
from robustmerge.stage.settings import ConfigError, UserError

ANIMALS = ("cat", "sea_lion", "dog")
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def draw(shade: int, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(file, kind)
    return file.getvalue()


def write_parquet(
    file: Path, labels: Sequence[Any], names: Sequence[str] | None = ANIMALS, pictures: Sequence[bytes | None] = ()
) -> None:
    """A file as the Hub's library writes it, in row groups of four; a picture's shade is its number."""
    pictures = pictures or [draw(number, "JPEG" if number % 2 else "PNG") for number in range(len(labels))]
    columns = {"image": pyarrow.array([{"bytes": one, "path": None} for one in pictures], IMAGE), "label": list(labels)}
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), file, row_group_size=4)


def settings_of(folder: Path, **values: Any) -> TaskData:
    default = {"train": "train", "test": "test", "question": "Which animal is this?"}
    return TaskData(task="animals", dataset=str(folder), **{**default, **values})


def address_of(root: Path, settings: TaskData) -> Address:
    return address_folder(root, "data", settings.task, "prepare", 1, settings, {})


def import_into(root: Path, settings: TaskData) -> tuple[dict[str, list[Example]], Path]:
    folder = prepare(address_of(root, settings), settings, lambda text: None)
    return {split: read_examples(folder / f"{split}.jsonl") for split in SPLITS}, folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Thirty training pictures in two files, ten test pictures."""
    folder = tmp_path / "source"
    write_parquet(folder / "data/train-00000-of-00002.parquet", [number % 3 for number in range(21)])
    write_parquet(folder / "data/train-00001-of-00002.parquet", [2] * 9)
    write_parquet(folder / "data/test-00000-of-00001.parquet", [number % 3 for number in range(10)])
    return folder


def test_pictures_are_written_as_they_are_with_the_names_of_their_classes(source: Path, tmp_path: Path) -> None:
    splits, folder = import_into(tmp_path, settings_of(source))
    assert [example.answer for example in splits["test"]] == [ANIMALS[number % 3] for number in range(10)]
    for number, example in enumerate(splits["test"]):
        kind, suffix = ("JPEG", ".jpg") if number % 2 else ("PNG", ".png")
        assert example.question_id == f"animals-test-{number:05d}" and example.text == "Which animal is this?"
        assert example.image == f"images/test_{number:05d}{suffix}"
        assert (folder / example.image).read_bytes() == draw(number, kind)
    assert json.loads((folder / CLASSES).read_text()) == list(ANIMALS)
    train = {example.question_id: example.answer for split in ("train", "val") for example in splits[split]}
    assert len(train) == 30 and train["animals-train-00021"] == "dog"


def test_val_is_the_published_split_or_a_fifth_of_test_or_a_tenth_of_train(source: Path, tmp_path: Path) -> None:
    of_train, _ = import_into(tmp_path / "a", settings_of(source))
    assert [len(of_train[split]) for split in SPLITS] == [27, 3, 10]
    of_test, _ = import_into(tmp_path / "b", settings_of(source, val_of_test=0.2))
    assert [len(of_test[split]) for split in SPLITS] == [30, 2, 8]
    assert {example.question_id for split in ("val", "test") for example in of_test[split]} == {
        example.question_id for example in of_train["test"]
    }
    other, _ = import_into(tmp_path / "c", settings_of(source, val_of_test=0.2, seed=1))
    assert other["val"] != of_test["val"]
    write_parquet(source / "data/validation-00000-of-00001.parquet", [1, 1])
    published, _ = import_into(tmp_path / "d", settings_of(source, val="validation"))
    assert [len(published[split]) for split in SPLITS] == [30, 2, 10]


def test_what_is_tested_does_not_depend_on_what_is_trained_on(source: Path, tmp_path: Path) -> None:
    whole, _ = import_into(tmp_path / "a", settings_of(source, val_of_test=0.2))
    only_test, _ = import_into(tmp_path / "b", settings_of(source, val_of_test=0.2, train=None))
    assert only_test["test"] == whole["test"] and only_test["val"] == whole["val"] and not only_test["train"]


def test_classes_are_called_as_the_settings_say_in_the_order_of_the_dataset(source: Path, tmp_path: Path) -> None:
    names = ("cat", "sea lion", "a good dog")
    splits, folder = import_into(tmp_path, settings_of(source, classes=names))
    assert [example.answer for example in splits["test"][:3]] == list(names)
    assert json.loads((folder / CLASSES).read_text()) == list(names)
    for wrong, message in {
        ("cat", "dog", "Sea Lion"): "at another place: sea_lion, dog",
        ("cat", "dog"): "2 classes are listed, the dataset has 3",
    }.items():
        with pytest.raises(UserError, match=message):
            import_into(tmp_path, settings_of(source, classes=wrong))


@pytest.mark.parametrize("named", [True, False])
def test_labels_may_be_names(named: bool, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/test.parquet", ["dog", "cat"], ANIMALS if named else None)
    settings = settings_of(tmp_path / "in", train=None, classes=("cat", "seal", "dog"))
    splits, _ = import_into(tmp_path, settings)
    assert [example.answer for example in splits["test"]] == ["dog", "cat"]


def test_a_folder_for_every_class_is_a_dataset(tmp_path: Path) -> None:
    for split, count in (("train", 11), ("test", 2)):
        for shade, name in enumerate(sorted(ANIMALS)):
            folder = tmp_path / "in" / split / name
            folder.mkdir(parents=True)
            (folder / ".hidden").write_text("no picture")
            for number in range(count):
                (folder / f"{number:02d}.jpeg").write_bytes(draw(shade, "JPEG"))
    splits, folder = import_into(tmp_path, settings_of(tmp_path / "in"))
    assert [example.answer for example in splits["test"]] == [name for name in sorted(ANIMALS) for _ in range(2)]
    assert [len(splits[split]) for split in SPLITS] == [30, 3, 6]
    assert (folder / splits["test"][2].image).read_bytes() == draw(1, "JPEG")
    renamed, _ = import_into(tmp_path, settings_of(tmp_path / "in", classes=("cat", "dog", "sea lion")))
    assert renamed["test"][-1].answer == "sea lion"


def test_a_subset_and_other_columns_are_found(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/small/test-0.parquet", [2, 0])
    write_parquet(tmp_path / "in/large/test-0.parquet", [1])
    table = pyarrow.parquet.read_table(tmp_path / "in/small/test-0.parquet")
    about = json.dumps({"info": {"features": {"fine": {"names": ANIMALS}}}})
    table = table.rename_columns(["img", "fine"]).replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, tmp_path / "in/small/test-0.parquet")
    settings = settings_of(tmp_path / "in", train=None, subset="small", image_column="img", label_column="fine")
    splits, _ = import_into(tmp_path, settings)
    assert [example.answer for example in splits["test"]] == ["dog", "cat"]


def write_labels(*labels: Any, names: Sequence[str] | None = ANIMALS, pictures: Sequence[bytes | None] = ()) -> Any:
    return lambda folder: write_parquet(folder / "test.parquet", labels, names, pictures)


def write_class_folder(folder: Path) -> None:
    (folder / "test/cat").mkdir(parents=True)
    (folder / "test/cat/notes.txt").write_text("no picture")


FAULTY = {
    "no such split": (lambda folder: (folder / "train").mkdir(parents=True), r"no split 'test': .*; it has train"),
    "no picture": (write_labels(pictures=[]), "has no pictures of 'test'"),
    "no parquet": (lambda folder: write_text(folder / "test.parquet"), "cannot be read as a parquet file of labelled"),
    "no names": (write_labels(0, names=None), r"does not name its classes; list them \(task.animals.data.classes\)"),
    "a name twice": (write_labels(0, names=("crane", "dog", "crane")), "several classes of one name; .*: crane"),
    "a label too high": (write_labels(0, 3, 7), r"(?s)2 faulty pictures:.*picture 1 of .* label 3 is none of the 3 c"),
    "no label": (write_labels(0, None), "label None is none of the 3 classes"),
    "an unknown name": (write_labels("cat", "cow"), "label 'cow' is none of the 3 classes"),
    "no bytes": (write_labels(0, 1, pictures=[draw(0), None]), "picture 1 of the split: it holds no bytes"),
    "a cut picture": (write_labels(0, pictures=[draw(0)[:40]]), "picture 0 of the split: cannot read a picture"),
    "another file": (write_class_folder, r"notes.txt: cannot read a picture .*: it is no picture of a known format"),
}


def write_text(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("no parquet")


@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_is_told_with_its_place_and_leaves_no_finished_data(fault: str, tmp_path: Path) -> None:
    write, message = FAULTY[fault]
    write(tmp_path / "in")
    settings = settings_of(tmp_path / "in", train=None)
    with pytest.raises(UserError, match=message):
        import_into(tmp_path, settings)
    assert not address_of(tmp_path, settings).is_complete()


def test_a_missing_column_is_told_with_those_that_there_are(source: Path, tmp_path: Path) -> None:
    for values, message in (
        ({"image_column": "img"}, r"no column 'img'; it has image, label \(task.animals.data.image_column\)"),
        ({"label_column": "fine"}, r"no column 'fine'; it has image, label \(task.animals.data.label_column\)"),
        ({"image_column": "label"}, r"column 'label' must hold pictures, as \{bytes, path\}, got int64"),
    ):
        with pytest.raises(UserError, match=message):
            import_into(tmp_path, settings_of(source, **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": " "}, r"needs the question that its labels answer \(question\)"),
        ({"classes": ("cat", "dog", "cat")}, r"a class is named twice: cat \(classes\)"),
        ({"classes": ("cat", "")}, "the name of a class is empty"),
        ({"val_of_test": 1.0}, r"val_of_test must be in \[0, 1\), got 1.0"),
        ({"val_of_test": 0.2, "val": "validation"}, "needs a test split, and no val split beside it"),
        ({"images": "pictures"}, "about question files, and a dataset is given: images"),
        ({"subset": "../other"}, r"expected the name of a split or a folder in the dataset, got '../other' \(subset\)"),
        ({"generator": "vqav2"}, "give either a generator or files, got generator and train, test, dataset"),
        ({"dataset": None}, "about a dataset of labelled pictures, and none is given: question"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict, message: str) -> None:
    given = {"task": "a", "dataset": "user/repo", "train": "train", "test": "test", "question": "What?"}
    with pytest.raises(ConfigError, match=message):
        TaskData(**{**given, **values})


def test_files_and_their_sizes_identify_a_local_dataset(source: Path) -> None:
    settings = settings_of(source)
    sizes = list_sizes(settings, source)
    assert {split: len(files) for split, files in sizes.items()} == {"train": 2, "test": 1}
    write_parquet(source / "data/test-00000-of-00001.parquet", [0])
    assert list_sizes(settings, source)["test"] != sizes["test"]
    assert list_sizes(dataclasses.replace(settings, counts=Counts(val=1)), source)["train"] == sizes["train"]
