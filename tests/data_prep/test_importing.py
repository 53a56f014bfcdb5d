"""Rows on their way into a prepared task: what is left out, what goes together, what a kill leaves behind."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep import importing
from data_prep.prepare import prepare
from data_prep.settings import Counts, Sample, TaskData
from data_prep.splits import draw_val
from data_prep.summary import summarise
from eval.questions import count_left_out, explain_unreadable
from robustmerge.stage.address import Address, address_folder, address_foreign, read_manifest
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import UserError

ROWS, A_PICTURE = 60, 3  # questions; questions on a picture
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # to be shown turned by 90 degrees


@pytest.fixture
def task(tmp_path) -> TaskData:
    """Sixty questions on twenty pictures, and five test questions on one."""
    (tmp_path / "in").mkdir()
    for index in range(ROWS // A_PICTURE):
        Image.new("RGB", (6, 4), (index, 0, 0)).save(tmp_path / f"in/{index}.png")
    write_rows(tmp_path / "in/train.json", [row(number) for number in range(ROWS)])
    write_rows(tmp_path / "in/test.json", [row(number, "0.png") for number in range(5)])
    return TaskData(task="mine", train=str(tmp_path / "in/train.json"), test=str(tmp_path / "in/test.json"))


def row(number: int, image: str = "", **fields: object) -> dict:
    return {
        "question_id": number,
        "image": image or f"{number // A_PICTURE}.png",
        "text": "What?",
        "answer": "x",
    } | fields


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows))


def address_of(root: Path, settings: TaskData) -> Address:
    inputs = {split: address_foreign(file) for split, (file,) in settings.input_files.items()}
    return address_folder(root, "data", settings.task, "prepare", 1, settings, inputs)


def ids_of(folder: Path, split: str) -> list[str]:
    return [example.question_id for example in read_examples(folder / f"{split}.jsonl")]


def test_bad_rows_are_left_out_and_listed_as_far_as_that_is_allowed(task, tmp_path):
    rows = [row(number) for number in range(ROWS)]
    rows[3] = row(3, "missing.png")
    rows[7] = row(7, answer=" ")
    rows[8] = row(5)
    (tmp_path / "in/9.png").write_bytes((tmp_path / "in/8.png").read_bytes()[:40])
    write_rows(Path(task.train), rows)
    with pytest.raises(UserError, match=r"6 of 60 rows of train cannot be used .* at most 5\.0% may be left out"):
        settings = dataclasses.replace(task, most_rejected=0.05)
        prepare(address_of(tmp_path / "runs", settings), settings)
    settings = dataclasses.replace(task, most_rejected=0.1)
    address, said = address_of(tmp_path / "runs", settings), []
    folder = prepare(address, settings, said.append)
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [one["row"] for one in rejected] == [4, 8, 9, 28, 29, 30]
    assert Counter(one["kind"] for one in rejected) == {"missing picture": 1, "faulty row": 2, "unreadable picture": 3}
    assert "question_id is not unique: 5 is also that of record 6" in rejected[2]["text"]
    assert not {"3", "7", "27", "28", "29"} & {*ids_of(folder, "train"), *ids_of(folder, "val")}
    assert any("6 rows of train are left out" in message for message in said)
    assert read_manifest(address.manifest)["record"]["rejected"]["train"] == Counter(one["kind"] for one in rejected)
    assert summarise(folder, "train").found == ROWS and summarise(folder, "train").coverage == pytest.approx(0.9)
    assert summarise(folder, "test").coverage == 1 and count_left_out(folder / "test.jsonl") == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"text": "\u200b"}, "question 0 is empty"),
        ({"text": "<image>\u2800"}, "question 0 is empty"),
        ({"answer": "\ufeff"}, "question 0 has an empty answer"),
        ({"choices": ["red", ""]}, "question 0 has an empty option"),
        ({"turns": [[" ", "x"]]}, "question 0 has an empty later question"),
        ({"question_id": ""}, "field 'question_id' is empty"),
        ({"size": [4, 6]}, r"field 'size' is \[4, 6\], its picture has 6 x 4 pixels"),
    ],
)
def test_what_shows_nothing_and_a_size_that_is_not_the_pictures_are_refused(task, tmp_path, fields, problem):
    write_rows(Path(task.test), [row(0, "0.png", **fields)])
    settings = dataclasses.replace(task, train=None)
    with pytest.raises(UserError, match=rf"test\.json, record 1: .*{problem}"):
        prepare(address_of(tmp_path / "runs", settings), settings)


def test_annotations_are_joined_by_the_ids_of_the_file_also_where_the_questions_are_numbered(task, tmp_path):
    answers = [{"question_id": number, "answers": [{"answer": f"of {number}"}]} for number in (1, 2, 7)]
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": answers}))
    write_rows(Path(task.test), [row(7, "0.png"), {**row(0, "0.png"), "question_id": None}, row(1, "0.png")])
    settings = dataclasses.replace(
        task, train=None, annotations=str(tmp_path / "answers.json"), ids="number", most_rejected=0.5
    )
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    examples = read_examples(folder / "test.jsonl")
    assert [(one.question_id, one.references) for one in examples] == [("1", ("of 7",)), ("3", ("of 1",))]
    assert "without an id" in (folder / "rejected.jsonl").read_text()


def test_a_long_list_of_faults_is_in_a_file_that_the_message_names(task, tmp_path):
    write_rows(Path(task.test), [row(number, f"{number}.gif") for number in range(9)])
    with pytest.raises(UserError, match=r"9 of 9 rows of test .*; all of them: (\S+)\n") as error:
        prepare(address_of(tmp_path / "runs", task), task)
    (path,) = (word for word in str(error.value).split() if word.endswith("rejected.jsonl"))
    assert len(Path(path).read_text().splitlines()) == 9


def test_val_takes_pictures_with_all_their_questions(task, tmp_path):
    folder = prepare(address_of(tmp_path / "runs", task), task)
    train, val = (read_examples(folder / f"{split}.jsonl") for split in ("train", "val"))
    assert len(val) == 6 and not {one.image for one in val} & {one.image for one in train}


@given(asked=st.dictionaries(st.text(max_size=4), st.integers(1, 9), min_size=2), most=st.integers(1, 50))
def test_val_is_at_most_what_is_said_unless_one_picture_has_more(asked, most):
    settings = TaskData(task="mine", train="t.json", counts=Counts(val=most))
    val = draw_val(asked, settings)
    room = min(most, max(1, sum(asked.values()) // 10))
    assert val == draw_val(dict(reversed(asked.items())), settings) and val < asked.keys()
    assert 0 < sum(asked[picture] for picture in val) <= max(room, min(asked.values()))


def test_nothing_is_cut_from_questions_on_one_picture(task, tmp_path):
    write_rows(Path(task.train), [row(number, "0.png") for number in range(30)])
    folder = prepare(address_of(tmp_path / "runs", task), task)
    assert len(ids_of(folder, "train")) == 30 and not ids_of(folder, "val")


def test_a_sample_is_drawn_by_the_seed_and_recorded(task, tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        settings = dataclasses.replace(task, sample=Sample(train=20), seed=seed)
        address = address_of(tmp_path / f"runs{len(drawn)}", settings)
        folder = prepare(address, settings)
        assert len(ids_of(folder, "train")) + len(ids_of(folder, "val")) == 20 and len(ids_of(folder, "test")) == 5
        drawn.append(read_manifest(address.manifest)["record"]["sampled_rows"]["train"])
    assert drawn[0] == drawn[1] != drawn[2]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(task, tmp_path, monkeypatch, after):
    monkeypatch.setattr(importing, "BATCH", 7)
    whole = prepare(address_of(tmp_path / "whole", task), task)
    take, taken = importing.copy_pictures, []

    def take_and_die(folder, pictures):
        if len(taken) == after:
            raise Killed
        taken.append(pictures)
        return take(folder, pictures)

    address = address_of(tmp_path / "killed", task)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(importing, "copy_pictures", take_and_die)
        prepare(address, task)
    journal = address.path / "unfinished/train.jsonl"
    with open(journal, "ab") as file:  # a line that the kill has cut
        file.write(b'{"row": 99')
    decoded = []
    monkeypatch.setattr(importing, "copy_pictures", lambda *job: decoded.append(job) or take(*job))
    folder = prepare(address, task)
    for name in ("train.jsonl", "val.jsonl", "test.jsonl", "train.json", "rejected.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert len(decoded) == (9 - after) + 1 and not (folder / "unfinished").exists()


def test_a_picture_that_is_mended_after_a_refusal_is_taken_by_the_same_command(task, tmp_path):
    whole = (tmp_path / "in/7.png").read_bytes()
    (tmp_path / "in/7.png").write_bytes(bytes(len(whole)))
    address = address_of(tmp_path / "runs", task)
    for _ in range(2):
        with pytest.raises(UserError, match=r"7\.png: it is no picture"):
            prepare(address, task)
    (tmp_path / "in/7.png").write_bytes(whole)
    assert {"21", "22", "23"} <= {*ids_of(prepare(address, task), "train"), *ids_of(address.path, "val")}


def test_a_killed_run_goes_on_with_the_answers_that_its_parser_reads_now(task, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 7)
    settings = dataclasses.replace(task, most_rejected=0.5)
    address, take = address_of(tmp_path / "runs", settings), importing.copy_pictures

    def take_and_die(folder, pictures):
        if (folder / "images/4.png").exists():
            raise Killed
        return take(folder, pictures)

    def refuse(number):
        return lambda split, one: "unread" if one.question_id == number else ""

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(importing, "copy_pictures", take_and_die)
        prepare(address, settings, check=refuse("2"))
    folder = prepare(address, settings, check=refuse("5"))
    (rejected,) = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    assert rejected["row"] == 6 and "2" in ids_of(folder, "train") + ids_of(folder, "val")


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_question_file_that_is_replaced_while_it_is_read_is_not_taken(task, tmp_path, monkeypatch, when):
    address, take = address_of(tmp_path / "runs", task), importing.copy_pictures
    before = Path(task.test).read_text()

    def replace(*job):
        write_rows(Path(task.test), [row(0, text=5, answer=None)])
        return take(*job)

    if when == "before":
        replace(tmp_path, [])
    monkeypatch.setattr(importing, "copy_pictures", replace)
    with pytest.raises(UserError, match=r"test\.json has changed since the command was started"):
        prepare(address, task)
    assert not address.is_complete()
    monkeypatch.setattr(importing, "copy_pictures", take)
    Path(task.test).write_text(before)
    assert len(ids_of(prepare(address, task), "test")) == 5


@pytest.mark.parametrize("jobs", [1, 2])
def test_pictures_come_out_of_an_archive_one_by_one(task, tmp_path, monkeypatch, jobs):
    monkeypatch.setattr(importing, "IMAGES_FOR_A_POOL", 1)
    with zipfile.ZipFile(tmp_path / "in/pictures.zip", "w") as archive:
        for index in range(5):
            archive.write(tmp_path / f"in/{index}.png", f"{index}.png")
        archive.writestr("../../evil.png", b"never asked for")
        archive.writestr("4.png.bad", b"no picture")
    write_rows(Path(task.test), [row(number, f"pictures/{number}.png") for number in range(5)])
    settings = dataclasses.replace(task, train=None, jobs=jobs)
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    assert sorted(path.name for path in (folder / "images").rglob("*.*")) == [f"{index}.png" for index in range(5)]
    assert (folder / "images/pictures/3.png").read_bytes() == (tmp_path / "in/3.png").read_bytes()
    assert not list(tmp_path.rglob("evil.png"))


def test_a_member_that_cannot_be_unpacked_is_one_row_that_cannot_be_used(task, tmp_path):
    with zipfile.ZipFile(tmp_path / "in/pictures.zip", "w") as archive:
        archive.write(tmp_path / "in/0.png", "0.png")
        archive.write(tmp_path / "in/1.png", "1.png")
        archive.writestr(f"{'x' * 300}.png", b"no file may be called so")
    damaged = (tmp_path / "in/pictures.zip").read_bytes().replace(b"IDAT", b"IDOT", 1)
    (tmp_path / "in/pictures.zip").write_bytes(damaged)
    names = ("0.png", "1.png", f"{'x' * 300}.png")
    write_rows(Path(task.test), [row(number, f"pictures/{name}") for number, name in enumerate(names)])
    settings = dataclasses.replace(task, train=None, most_rejected=0.9)
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    first, second = (json.loads(line)["text"] for line in (folder / "rejected.jsonl").read_text().splitlines())
    assert ids_of(folder, "test") == ["1"] and "Bad CRC-32" in first and "more than 255 bytes" in second


@pytest.mark.parametrize(
    ("save", "problem"),
    [
        ({"format": "GIF"}, None),
        ({"format": "JPEG", "exif": TURNED}, None),
        ({"format": "JPEG", "mode": "CMYK"}, None),
        ({"format": "PNG", "cut": 30}, "cannot read the picture"),
        ({"format": "PNG", "cut": 0}, "no picture of a known format"),
        ({"format": "PNG", "size": (9500, 1)}, "at most 9400 a side"),
        ({"format": "TIFF", "mode": "LAB"}, r"colours are L\*a\*b\*"),
    ],
)  # fmt: skip
def test_pictures_of_all_kinds_are_taken_as_they_are_and_broken_ones_refused(task, tmp_path, save, problem):
    picture = Image.new(save.pop("mode", "RGB"), save.pop("size", (6, 4)))
    cut = save.pop("cut", None)
    picture.save(tmp_path / "in/odd", **save)
    (tmp_path / "in/odd").write_bytes((tmp_path / "in/odd").read_bytes()[:cut])
    write_rows(Path(task.test), [row(0, "odd")])
    settings = dataclasses.replace(task, train=None)
    if problem:
        with pytest.raises(UserError, match=problem):
            prepare(address_of(tmp_path / "runs", settings), settings)
        return
    folder = prepare(address_of(tmp_path / "runs", settings), settings)
    (example,) = read_examples(folder / "test.jsonl")
    assert example.size == (6, 4)  # as stored: training does not turn a picture either
    assert (folder / "images/odd").read_bytes() == (tmp_path / "in/odd").read_bytes()


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ("[0.0,0.2,0.5,0.8]", ""),
        ("[0.0,0.16,1.0,0.84]", ""),  # the picture's own border, rounded
        ("[0.0,0.0,0.5,0.8]", "stands out of the picture of 6 x 4 pixels"),
        ("[0.2,0.3,0.5,0.95]", "stands out of the picture"),
        ("[0.2,0.3,1.2,0.5]", "stands out of the picture"),
        ("[0.2,0.3,0.2,0.5]", "has no area"),
    ],
)
def test_a_box_lies_in_its_picture(task, tmp_path, box, problem):
    write_rows(Path(task.test), [row(0, "0.png", answer_bbox=box, answer=box)])
    settings = dataclasses.replace(task, train=None)
    arguments = address_of(tmp_path / "runs", settings), settings, print, lambda _, one: explain_unreadable("box", one)
    if problem:
        with pytest.raises(UserError, match=problem):
            prepare(*arguments)
    else:
        prepare(*arguments)


def test_the_options_hold_the_answer(task, tmp_path):
    write_rows(Path(task.test), [row(0, "0.png", answer="blue", choices=["red", "green"])])
    settings = dataclasses.replace(task, train=None)
    with pytest.raises(UserError, match="'blue' is none of its choices|'blue' cannot be read with parse=table"):
        prepare(
            address_of(tmp_path / "runs", settings), settings, print, lambda _, one: explain_unreadable("table", one)
        )


MEASURE = """
import resource, sys
from pathlib import Path
from data_prep.importing import import_task
from data_prep.settings import TaskData
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = most()
import_task(Path(sys.argv[1]), TaskData(task="mine", test=sys.argv[2]), lambda text: None)
print(most() - before)
"""


@pytest.mark.parametrize("name", ["test.jsonl", "test.json"])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, name):
    (tmp_path / "out").mkdir()
    rows = [json.dumps({"question_id": number, "text": "x" * 40_000, "answer": "y"}) for number in range(400)]
    (tmp_path / name).write_text("\n".join(rows) if name.endswith("l") else f"[{','.join(rows)}]")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "out"), str(tmp_path / name)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 10_000, f"{grown} kB for a file of 16,000 kB"
