"""ScienceQA, ImageNet, VQAv2, RefCOCO, OCR-VQA and IconQA as their owners publish them. Needs no network."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import yaml

from data_prep.importing import REJECTED
from data_prep.prepare import prepare
from data_prep.releases.imagenet import CLASSES
from data_prep.releases.rec import format_box
from data_prep.rows import iterate_rows
from data_prep.settings import Release, TaskData, load_release
from eval.parse import parse_box
from eval.questions import explain_unreadable
from robustmerge.stage.address import REPOSITORY, address_folder, address_foreign
from robustmerge.stage.json_stream import Element
from robustmerge.stage.records import Example, parse_example, read_examples
from robustmerge.stage.settings import UserError

NAMES = ("scienceqa", "imagenet", "vqav2", "rec", "ocrvqa", "iconqa")
SPLITS = [(name, split) for name in NAMES for split in load_release(name).FILES]


@cache
def raw_of(name: str) -> ModuleType:
    return importlib.import_module(f"tests.data_prep.raw.{name}")


def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"configs/task/mm_mergebench/{name}.yaml").read_text())


def settings_of(raw: Path, name: str, split: str) -> TaskData:
    """A task whose test questions are a split of a release."""
    release = Release(name=name, test=split)
    return TaskData(task=name, source="release", release=release, collection=str(raw), most_rejected=0.9)


def convert(raw: Path, name: str, split: str) -> list[Element]:
    settings = settings_of(raw, name, split)
    return list(iterate_rows(settings, "test", settings.input_files["test"]))


@dataclass(frozen=True)
class Prepared:
    """A prepared split: its questions by id, and what is said of the rows that were refused, by number."""

    examples: dict[str, Example]
    rejected: dict[int, dict[str, Any]]


def prepare_split(raw: Path, runs: Path, name: str, split: str) -> Prepared:
    settings = settings_of(raw, name, split)
    inputs = {file.name: address_foreign(file) for file in settings.input_files["test"]}
    folder = prepare(address_folder(runs, "data", name, "prepare", 1, settings, inputs), settings, lambda _: None)
    examples = read_examples(folder / "test.jsonl")
    assert all((folder / one.image).is_file() for one in examples if one.image)
    rejected = map(json.loads, (folder / REJECTED).read_text().splitlines())
    return Prepared({one.question_id: one for one in examples}, {one["row"]: one for one in rejected})


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
    return {(name, split): prepare_split(raw, runs / split, name, split) for name, split in SPLITS}


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_its_rows_become_the_expected_questions_in_their_order(prepared, name, split):
    expected, examples = raw_of(name).EXPECTED[split], prepared[name, split].examples
    assert list(examples) == list(expected)
    for question_id, fields in expected.items():
        for field, value in fields.items():
            assert getattr(examples[question_id], field) == value, (question_id, field)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_each_odd_row_is_refused_with_its_reason(prepared, name, split):
    expected, rejected = raw_of(name).REJECTED.get(split, {}), prepared[name, split].rejected
    assert rejected.keys() == expected.keys()
    assert all(reason in rejected[row]["text"] for row, reason in expected.items())


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_converting_twice_gives_the_same_rows_each_at_its_place(raw, name, split):
    rows = convert(raw, name, split)
    assert rows == convert(raw, name, split)
    assert len({(row.file, row.place) for row in rows}) == len(rows)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_rows_are_converted_without_their_pictures(raw, tmp_path, name, split):
    for file in load_release(name).FILES[split]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((raw / file).read_bytes())
    pairs = zip(convert(tmp_path, name, split), convert(raw, name, split), strict=True)
    assert all(bare.value == row.value for bare, row in pairs)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_tasks_own_parser_reads_every_answer(prepared, name, split):
    parse = config_of(name)["parse"]
    assert not any(explain_unreadable(parse, example) for example in prepared[name, split].examples.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_tasks_file_names_splits_that_its_release_has(name):
    release = config_of(name)["data"]["release"]
    assert release.pop("name") == name and "test" in release
    assert set(release.values()) <= load_release(name).FILES.keys()


# --- faults ----------------------------------------------------------------------------------------------------------


def break_each(value: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield a JSON value with one member after the other left out or of another kind, with what was done to it."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        if isinstance(value, dict):
            yield f"{(*where, key)} left out", {name: one for name, one in value.items() if name != key}
        changes = [(f"{(*where, key)}: {other!r}", other) for other in (None, 7.5, "text", ["a", {}])]
        for what, other in [*changes, *break_each(member, (*where, key))]:
            yield what, put(value, key, other)


def put(value: Any, key: Any, member: Any) -> Any:
    changed = value.copy()
    changed[key] = member
    return changed


ROWS = [
    ("scienceqa", "train", 0, ("1",)),
    ("vqav2", "train2014", 0, ("questions", 0)),
    ("vqav2", "train2014", 1, ("annotations", 0)),
    ("rec", "train", 0, ("images", 0)),
    ("rec", "train", 0, ("annotations", 0)),
    ("ocrvqa", "val", 0, ("1400046106",)),
    ("iconqa", "train", 0, ("1",)),
    ("iconqa", "train", 0, ("2",)),
]


@pytest.mark.parametrize(("name", "split", "number", "keys"), ROWS)
def test_whatever_is_wrong_in_a_row_is_refused_by_the_reader_or_names_the_file(tmp_path, name, split, number, keys):
    raw_of(name).write(tmp_path)
    files = [tmp_path / file for file in load_release(name).FILES[split]]
    content = json.loads(files[number].read_text())
    *outer, last = keys
    holder = content[outer[0]] if outer else content
    for what, broken in break_each(holder[last]):
        changed = put(content, outer[0], put(holder, last, broken)) if outer else put(content, last, broken)
        files[number].write_text(json.dumps(changed))
        try:
            rows = list(load_release(name).convert(split, *files))
        except UserError as error:
            assert f"{files[number]}, " in str(error), what
            continue
        for row in rows:
            with contextlib.suppress(TypeError, ValueError):  # of the reader
                example = parse_example(row.value)
                assert "None" not in example.text + example.answer, what


@pytest.mark.parametrize("name", ["scienceqa", "iconqa"])
def test_a_problem_that_is_listed_and_not_there_is_named(tmp_path, name):
    raw_of(name).write(tmp_path)
    problems, splits = (tmp_path / file for file in load_release(name).FILES["test"])
    splits.write_text(splits.read_text().replace('"20"', '"20", "77"').replace('"16"', '"16", "77"'))
    with pytest.raises(UserError, match=f"{problems} lacks problems that {splits} lists: 77"):
        convert(tmp_path, name, "test")


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("LOC_synset_mapping.txt", b"n01440764 tench\n", "lacks synsets .*: n03223299, n02112018, .* more"),
        ("LOC_synset_mapping.txt", b"n01440764\n", "line 1: expected a line such as 'n02119022 red fox.*'n01440764'"),
        ("LOC_synset_mapping.txt", b"\xff\xfe\x00", "cannot be read as a mapping of synsets: it is not UTF-8"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\n\npicture,\n", "line 3: expected .* 'picture,'"),
        ("LOC_val_solution.csv", b"\xff\xfe\x00", "cannot be read as a list of pictures .*: it is not UTF-8"),
    ],
)
def test_a_fault_in_a_file_of_imagenet_names_its_line(tmp_path, file, content, problem):
    raw_of("imagenet").write(tmp_path)
    path = tmp_path / "ImageNet" / file
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}.* {problem}"):
        convert(tmp_path, "imagenet", "val")


# --- what is particular to a release ---------------------------------------------------------------------------------


def test_a_hint_comes_first_and_only_where_there_is_one(prepared):
    texts = [one.text for split in ("train", "val", "test") for one in prepared["scienceqa", split].examples.values()]
    assert [text.startswith("Context: ") for text in texts] == ["Context" in text for text in texts]
    assert sum("Context" in text for text in texts) == 1


def test_the_names_of_the_synsets_are_those_of_the_prompt():
    prompt = config_of("imagenet")["prompt"].removesuffix(".").partition("choices below: ")[2]
    assert list(dict.fromkeys(CLASSES.values())) == prompt.split(", ")


def test_a_hundred_and_one_synsets_have_a_hundred_names():
    names = list(CLASSES.values())
    assert len(CLASSES) == 101 and {name for name in names if names.count(name) > 1} == {"Maillot"}


def test_the_order_of_the_annotations_does_not_matter(raw, tmp_path):
    raw_of("vqav2").write(tmp_path)
    annotations = tmp_path / load_release("vqav2").FILES["val2014"][1]
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content | {"annotations": content["annotations"][::-1]}))
    assert convert(tmp_path, "vqav2", "val2014") == convert(raw, "vqav2", "val2014")


def test_annotations_are_read_no_further_than_their_question(tmp_path):
    raw_of("vqav2").write(tmp_path)
    questions, annotations = (tmp_path / file for file in load_release("vqav2").FILES["val2014"])
    annotations.write_text(annotations.read_text()[:-200])
    assert next(load_release("vqav2").convert("val2014", questions, annotations)).value["answer"] == "net"


def test_a_box_leads_back_to_its_pixels():
    rng = Random(0)
    for _ in range(200):
        width, height = rng.randint(100, 640), rng.randint(100, 640)
        left, top = rng.uniform(0, width - 2), rng.uniform(0, height - 2)
        box = [left, top, rng.uniform(1, width - left), rng.uniform(1, height - top)]
        side = max(width, height)
        corners = [value * side for value in map(float, format_box(box, width, height)[1:-1].split(","))]
        found = [corners[0] - (side - width) / 2, corners[1] - (side - height) / 2]
        found += [corners[2] - corners[0], corners[3] - corners[1]]
        assert found == pytest.approx(box, abs=0.0101 * side)


def test_a_box_is_written_as_in_the_published_files(prepared):
    answers = {one.answer for one in prepared["rec", "test"].examples.values()}
    assert answers == {"[0.6,0.26,0.73,0.54]", "[0.0,0.12,1.0,0.88]"}
    assert all(parse_box(answer) for answer in answers)


def test_every_evaluation_set_of_the_three_is_a_category(prepared):
    categories = {one.category for one in prepared["rec", "test"].examples.values()}
    files = [Path(file).stem.removeprefix("finetune_") for file in load_release("rec").FILES["test"]]
    assert categories == {name.replace("_", " ") for name in files} and len(categories) == 8


def test_all_questions_on_a_book_whose_answers_do_not_fit_are_refused(prepared):
    rejected = prepared["ocrvqa", "test"].rejected.values()
    places = [one["place"] for one in rejected if "null" in one["text"]]
    assert places == ["'unequal', question 1", "'unequal', question 2"]
