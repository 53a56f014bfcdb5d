"""VizWiz, Flickr30k, A-OKVQA, ImageNet-R, Screen2Words and TabMWP as their owners publish them. Needs no network."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from data_prep.importing import REJECTED
from data_prep.prepare import prepare
from data_prep.rows import iterate_rows
from data_prep.settings import Release, TaskData, load_release
from eval.questions import explain_unreadable
from robustmerge.stage.address import REPOSITORY, address_folder, address_foreign
from robustmerge.stage.json_stream import Element
from robustmerge.stage.records import Example, parse_example, read_examples
from robustmerge.stage.settings import UserError
from tests.data_prep.raw import flickr30k, imagenet_r

NAMES = ("vizwiz", "flickr30k", "aokvqa", "imagenet_r", "screen2words", "tabmwp")
SPLITS = [(name, split) for name in NAMES for split in load_release(name).FILES]


@cache
def raw_of(name: str) -> ModuleType:
    return importlib.import_module(f"tests.data_prep.raw.{name}")


def settings_of(raw: Path, name: str, **splits: str) -> TaskData:
    release = Release(name=name, **splits)
    return TaskData(task=name, source="release", release=release, collection=str(raw), most_rejected=0.9)


@dataclass(frozen=True)
class Prepared:
    examples: dict[str, Example]
    rejected: dict[int, dict[str, Any]]


def prepare_release(raw: Path, runs: Path, name: str, split: str) -> Prepared:
    """Prepare a split of a release as the test questions of a task."""
    settings = settings_of(raw, name, test=split)
    files = {f"{key} {file.name}": file for key, files in settings.input_files.items() for file in files}
    inputs = {key: address_foreign(file) for key, file in files.items()}
    folder = prepare(address_folder(runs, "data", name, "prepare", 1, settings, inputs), settings, lambda _: None)
    rejected = map(json.loads, (folder / REJECTED).read_text().splitlines())
    examples = {example.question_id: example for example in read_examples(folder / "test.jsonl")}
    assert all((folder / (example.image or "")).is_file() for example in examples.values())
    return Prepared(examples, {one["row"]: one for one in rejected})


def convert(raw: Path, name: str, split: str) -> list[Element]:
    settings = settings_of(raw, name, test=split)
    return list(iterate_rows(settings, "test", settings.input_files["test"]))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder with all six releases."""
    folder = tmp_path_factory.mktemp("raw")
    for name in NAMES:
        raw_of(name).write(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> dict[tuple[str, str], Prepared]:
    runs = tmp_path_factory.mktemp("runs")
    return {(name, split): prepare_release(raw, runs / split, name, split) for name, split in SPLITS}


@pytest.fixture
def own(tmp_path, request) -> Path:
    """A folder with the release that the test is about, to be changed."""
    raw_of(request.param).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_its_rows_become_the_expected_questions_in_their_order(prepared, name, split):
    expected, examples = raw_of(name).EXPECTED[split], prepared[name, split].examples
    assert list(examples) == list(expected)
    for question_id, fields in expected.items():
        for field, value in fields.items():
            found = getattr(examples[question_id], field)
            shown = {key: found[key] for key in value} if isinstance(value, dict) else found
            assert shown == value, (question_id, field)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_each_odd_row_is_refused_with_its_reason(prepared, name, split):
    expected, rejected = raw_of(name).REJECTED.get(split, {}), prepared[name, split].rejected
    assert rejected.keys() == expected.keys()
    for row, reason in expected.items():
        assert reason in rejected[row]["text"] and rejected[row]["file"] and rejected[row]["place"]


@pytest.mark.parametrize("name", ["vizwiz", "flickr30k"])
def test_its_training_questions_are_prepared_beside_those_of_its_evaluation(raw, tmp_path, name):
    settings = settings_of(raw, name, train="train", test="val")
    inputs = {split: address_foreign(file) for split, (file,) in settings.input_files.items()}
    folder = prepare(address_folder(tmp_path, "data", name, "prepare", 1, settings, inputs), settings, lambda _: None)
    trained = [
        example.question_id for split in ("train", "val") for example in read_examples(folder / f"{split}.jsonl")
    ]
    assert sorted(trained) == sorted(raw_of(name).EXPECTED["train"])
    assert [one.question_id for one in read_examples(folder / "test.jsonl")] == list(raw_of(name).EXPECTED["val"])


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_converting_twice_gives_the_same_rows(raw, name, split):
    assert convert(raw, name, split) == convert(raw, name, split)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_no_row_has_a_place_twice(raw, name, split):
    places = [row.place for row in convert(raw, name, split)]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "imagenet_r"])
def test_rows_are_converted_without_their_pictures(raw, tmp_path, name):
    for split, files in load_release(name).FILES.items():
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((raw / file).read_bytes())
        assert [row.value for row in convert(tmp_path, name, split)] == [row.value for row in convert(raw, name, split)]


@pytest.mark.parametrize("name", NAMES)
def test_the_tasks_own_parser_reads_every_answer(prepared, name):
    parse = config_of(name)["parse"]
    for split in load_release(name).FILES:
        assert not any(explain_unreadable(parse, example) for example in prepared[name, split].examples.values())


def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"configs/task/mm_mergebench/{name}.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_tasks_file_names_its_release_and_splits_that_there_are(name):
    data = config_of(name)["data"]
    converter, *splits = data["release"].values()
    assert converter == name and set(splits) <= set(load_release(name).FILES)
    assert data["release"].keys() - {"name"} == data.keys() & {"train", "test"}


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_row_names_a_picture(raw, name, split):
    assert all(parse_example(row.value).image for row in convert(raw, name, split))


# --- faults ----------------------------------------------------------------------------------------------------------


def break_each(value: Any, places: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield a JSON value with one member after the other left out, null, or of another kind, with what was done.

    Of a list, with the first only: the others are read as it is.
    """
    members = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, member in members:
        where = (*places, key)
        for other in (None, 7.5, "text", ["a", {}], {"b": []}):
            yield f"{where}: {other!r}", _put(value, key, other)
        if isinstance(value, dict):
            yield f"{where}: left out", {name: one for name, one in value.items() if name != key}
        for what, broken in break_each(member, where):
            yield what, _put(value, key, broken)


def _put(value: Any, key: str | int, member: Any) -> Any:
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = member
    return changed


@pytest.mark.parametrize(
    ("own", "split"),
    [("vizwiz", "train"), ("vizwiz", "val"), ("aokvqa", "val2014"), ("tabmwp", "test1k")],
    indirect=["own"],
)
def test_whatever_is_wrong_in_a_json_file_is_refused_by_its_reader_or_names_file_and_place(own, split, request):
    name = request.node.callspec.params["own"]
    (file,) = (own / path for path in load_release(name).FILES[split])
    content = json.loads(file.read_text())
    for what, broken in break_each(content):
        file.write_text(json.dumps(broken))
        try:
            for row in load_release(name).convert(split, file):
                with contextlib.suppress(TypeError, ValueError):  # the refusals of the reader
                    parse_example(row.value)
        except UserError as error:
            assert str(file) in str(error), what


@pytest.mark.parametrize("own", ["flickr30k"], indirect=True)
@pytest.mark.parametrize(
    ("columns", "row", "problem"),
    [
        (flickr30k.COLUMNS, ['["a"', "[0]", "val", "1.jpg", "0"], r"row 1: .*(delimiter|Expecting)"),
        (flickr30k.COLUMNS, ['"a"', "[0]", "val", "1.jpg", "0"], r"row 1: field 'raw' must be a list, got 'a'"),
        (flickr30k.COLUMNS, ['["a"]', "[0]", "val"], r"row 1: field 'filename' must be text, got None"),
        (("raw", "split"), ['["a"]', "val"], r"row 1: field 'filename' is missing"),
        (flickr30k.COLUMNS, ["a" * 200_000, "[0]", "val", "1.jpg", "0"], r"line 2: field larger than field limit"),
    ],
)
def test_a_fault_in_the_table_of_flickr30k_names_its_row(own, columns, row, problem):
    table = own / "Flickr30k/flickr_annotations_30k.csv"
    flickr30k.write_table(table, columns, [row])
    with pytest.raises(UserError, match=f"{table}, {problem}"):
        convert(own, "flickr30k", "val")


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("flickr30k", "Flickr30k/flickr_annotations_30k.csv"),
        ("imagenet_r", "imagenet-r/README.txt"),
        ("screen2words", "Screen2words/screen_summaries.csv"),
        ("tabmwp", "TabMWP/problems_test.json"),
    ],
    indirect=["own"],
)
def test_a_file_that_is_no_utf_8_is_named(own, file, request):
    name = request.node.callspec.params["own"]
    (own / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{own / file} cannot be read .*not UTF-8"):
        convert(own, name, next(iter(load_release(name).FILES)))


@pytest.mark.parametrize("own", ["screen2words"], indirect=True)
def test_a_line_without_a_summary_is_named(own):
    summaries = own / "Screen2words/screen_summaries.csv"
    summaries.write_text("screenId,summary\n\n54137\n")
    with pytest.raises(UserError, match=f"{summaries}, line 3: expected a screen, a comma and a summary"):
        convert(own, "screen2words", "test")


# --- what is particular to a release ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["vizwiz"], indirect=True)
@pytest.mark.parametrize(("split", "image", "place"), [("train", 1, ", annotations 5"), ("val", 23433, "")])
def test_a_caption_of_a_picture_that_is_not_listed_is_named(own, split, image, place):
    file = own / f"VizWiz/annotations/{split}.json"
    file.write_text(file.read_text().replace(f'"image_id": {image}', '"image_id": 99'))
    with pytest.raises(UserError, match=f"{file}{place}: .* not listed, with the ids? 99"):
        convert(own, "vizwiz", split)


@pytest.mark.parametrize("own", ["vizwiz"], indirect=True)
def test_the_questions_of_a_split_do_not_depend_on_what_comes_first_in_the_file(own):
    for split in ("train", "val"):
        file = own / f"VizWiz/annotations/{split}.json"
        before = convert(own, "vizwiz", split)
        file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
        assert convert(own, "vizwiz", split) == before


@pytest.mark.parametrize("archive", ["imagenet-r.tar", "imagenet-r/imagenet-r.tar"])
def test_the_pictures_of_an_archive_are_those_of_its_folders(prepared, tmp_path, archive):
    imagenet_r.write(tmp_path / "raw", archive)
    packed, folders = prepare_release(tmp_path / "raw", tmp_path / "runs", "imagenet_r", "test"), prepared
    texts = [
        {name: (one.text, one.answer, Path(one.image or "").parts[-2:]) for name, one in each.examples.items()}
        for each in (packed, folders["imagenet_r", "test"])
    ]
    assert texts[0] == texts[1] and packed.rejected.keys() == folders["imagenet_r", "test"].rejected.keys()


def test_numbered_questions_of_imagenet_r_keep_the_name_of_their_file_and_class(raw):
    rows = enumerate(convert(raw, "imagenet_r", "test"), start=1)
    numbered = {example.question_id: example.details for example in (parse_example(row.value, n) for n, row in rows)}
    assert numbered["1"] == {"question_id": "art_1.jpg", "wnid": "n01443537"}
    assert numbered["3"] == {"question_id": "art_1.jpg", "wnid": "n01484850"}


@pytest.mark.parametrize("own", ["imagenet_r"], indirect=True)
def test_a_class_without_a_picture_is_refused(own):
    (own / "imagenet-r/n01484850/art_1.jpg").unlink()
    with pytest.raises(
        UserError, match=r"README.txt names classes of which no picture .*: n01484850 \(great_white_shark"
    ):
        convert(own, "imagenet_r", "test")


def test_an_archive_that_is_none_is_refused(tmp_path):
    imagenet_r.write(tmp_path, "imagenet-r.tar")
    (tmp_path / "imagenet-r.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match="imagenet-r.tar cannot be read as an archive of pictures"):
        convert(tmp_path, "imagenet_r", "test")
