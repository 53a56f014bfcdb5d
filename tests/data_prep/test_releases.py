"""What holds for every owners' release and each of its splits: a new converter needs a raw folder to come under it.

What is particular to a dataset: test_release_particulars.py.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.settings import load_release
from eval.questions import explain_unreadable
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.records import parse_example
from robustmerge.stage.settings import UserError
from tests.data_prep.release_folder import Prepared, config_of, convert, prepare_release, raw_of, settings_of

NAMES = sorted(path.stem for path in (REPOSITORY / "data_prep/releases").glob("[!_]*.py"))
SPLITS = [(name, split) for name in NAMES for split in load_release(name).FILES]
# The files of all releases, and for each a split that is read from it, and its number among the files of the split.
FILES = {
    file: (name, split, number)
    for name, split in reversed(SPLITS)
    for number, file in enumerate(load_release(name).FILES[split])
}
# One split of each release, but of VizWiz, which reads its two in different ways; of REC's many files two.
IN_JSON = {
    (name, number, split if name == "vizwiz" else ""): (name, split, number)
    for file, (name, split, number) in FILES.items()
    if file.endswith(".json") and number < 2
}
TRAINED = [name for name in NAMES if "train" in config_of(name)["data"]["release"]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """One folder with all releases, as a user has it."""
    folder = tmp_path_factory.mktemp("raw")
    for name in NAMES:
        raw_of(name).write(folder)
    return folder


@pytest.fixture(scope="module", params=SPLITS, ids="-".join)
def prepared(raw, tmp_path_factory, request) -> tuple[str, str, Prepared]:
    """A release, a split of it, and that prepared as the test questions of a task."""
    name, split = request.param
    return name, split, prepare_release(raw, tmp_path_factory.mktemp("runs"), name, test=split)


def test_its_rows_become_the_expected_questions_in_their_order(prepared):
    name, split, task = prepared
    expected, examples = raw_of(name).EXPECTED[split], task.examples["test"]
    assert list(examples) == list(expected)
    for question_id, fields in expected.items():
        for field, value in fields.items():
            assert getattr(examples[question_id], field) == value, (question_id, field)


def test_each_odd_row_is_refused_with_its_place_and_reason(prepared):
    name, split, task = prepared
    expected, rejected = raw_of(name).REJECTED.get(split, {}), {one["row"]: one for one in task.rejected}
    assert rejected.keys() == expected.keys()
    for row, reason in expected.items():
        assert reason in rejected[row]["text"] and rejected[row]["file"] and rejected[row]["place"]


def test_every_question_has_its_picture_but_those_of_scienceqa_without_one(prepared):
    name, _, task = prepared
    for example in task.examples["test"].values():
        assert (task.folder / example.image).is_file() if example.image else name == "scienceqa"


def test_the_tasks_own_parser_reads_every_answer(prepared):
    name, _, task = prepared
    parse = config_of(name)["parse"]
    assert not any(explain_unreadable(parse, example) for example in task.examples["test"].values())


@pytest.mark.parametrize("name", TRAINED)
def test_its_training_questions_are_prepared_beside_those_of_its_evaluation(raw, tmp_path, name):
    splits = {split: called for split, called in config_of(name)["data"]["release"].items() if split != "name"}
    examples, expected = prepare_release(raw, tmp_path, name, **splits).examples, raw_of(name).EXPECTED
    assert {**examples["train"], **examples["val"]}.keys() == expected[splits["train"]].keys()
    assert examples["test"].keys() == expected[splits["test"]].keys()


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_converting_twice_gives_the_same_rows_each_at_its_place(raw, name, split):
    rows = convert(raw, name, split)
    assert rows == convert(raw, name, split)
    assert len({(row.file, row.place) for row in rows}) == len(rows)


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, split in SPLITS if name != "imagenet_r"])
def test_rows_are_converted_without_their_pictures(raw, tmp_path, name, split):
    for file in load_release(name).FILES[split]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((raw / file).read_bytes())
    assert [row.value for row in convert(tmp_path, name, split)] == [row.value for row in convert(raw, name, split)]


# --- faults ----------------------------------------------------------------------------------------------------------


def write_own(raw: Path, name: str, split: str) -> list[Path]:
    """Write a release, to be changed. Returns the files of a split."""
    raw_of(name).write(raw)
    return settings_of(raw, name, test=split).input_files["test"]


@pytest.mark.parametrize(("name", "split", "number"), FILES.values())
def test_a_file_that_is_no_utf_8_is_named(tmp_path, name, split, number):
    file = write_own(tmp_path, name, split)[number]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{re.escape(str(file))} cannot be read as .*: it is not UTF-8"):
        convert(tmp_path, name, split)


def break_each(value: Any, places: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield a JSON value with one member after the other left out, null, or of another kind, with what was done.

    Of a list with the first only, of objects with the same keys with the first only: the others are read as it is.
    """
    members = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    seen: list[Collection[str]] = []
    for key, member in members:
        if isinstance(member, dict):
            if member.keys() in seen:
                continue
            seen.append(member.keys())
        where = (*places, key)
        for other in (None, 7.5, "text", ["a", {}], {"b": []}):
            yield f"{where}: {other!r}", _put(value, key, other)
        if isinstance(value, dict):
            yield f"{where}: left out", {name: one for name, one in value.items() if name != key}
        for what, broken in break_each(member, where):
            yield what, _put(value, key, broken)


def _put(value: Any, key: Any, member: Any) -> Any:
    changed = value.copy()
    changed[key] = member
    return changed


@pytest.mark.parametrize(("name", "split", "number"), IN_JSON.values())
def test_whatever_is_wrong_in_a_json_file_is_refused_by_the_reader_or_names_file_and_place(
    tmp_path, name, split, number
):
    files = write_own(tmp_path, name, split)
    for what, broken in break_each(json.loads(files[number].read_text())):
        files[number].write_text(json.dumps(broken))
        try:
            for row in load_release(name).convert(split, *files):
                with contextlib.suppress(TypeError, ValueError):  # the refusals of the reader
                    example = parse_example(row.value)
                    assert "None" not in example.text + example.answer, what
        except UserError as error:
            of_all = any(words in str(error) for words in ("lacks problems", "not listed", "has nothing under"))
            assert f"{files[number]}{'' if of_all else ', '}" in str(error), what
