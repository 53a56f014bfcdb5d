"""What is particular to one owners' release or two. What holds for all: test_releases.py."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from data_prep.releases.imagenet import CLASSES
from data_prep.releases.rec import format_box
from data_prep.settings import load_release
from robustmerge.stage.records import parse_example
from robustmerge.stage.settings import UserError
from tests.data_prep.raw import flickr30k, imagenet_r
from tests.data_prep.release_folder import config_of, convert, prepare_release, raw_of


@pytest.fixture
def raw(tmp_path, request) -> Path:
    """A folder with the release that the test is about, to be changed."""
    raw_of(request.param).write(tmp_path)
    return tmp_path


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("raw", [name], indirect=True)


# --- ScienceQA, IconQA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "name"), [("scienceqa", "scienceqa"), ("iconqa", "iconqa")], indirect=["raw"])
def test_a_problem_that_is_listed_and_not_there_is_named(raw, name):
    problems, splits = (raw / file for file in load_release(name).FILES["test"])
    splits.write_text(splits.read_text().replace('"20"', '"20", "77"').replace('"16"', '"16", "77"'))
    with pytest.raises(UserError, match=f"{problems} lacks problems that {splits} lists: 77"):
        convert(raw, name, "test")


# --- ImageNet --------------------------------------------------------------------------------------------------------


@of("imagenet")
@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("LOC_synset_mapping.txt", "n01440764 tench\n", "lacks synsets .*: n03223299, n02112018, .* more"),
        ("LOC_synset_mapping.txt", "n01440764\n", "line 1: expected a line such as 'n02119022 red fox.*'n01440764'"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\n\npicture,\n", "line 3: expected .* 'picture,'"),
    ],
)
def test_a_fault_in_a_file_of_imagenet_names_its_line(raw, file, content, problem):
    (raw / "ImageNet" / file).write_text(content)
    with pytest.raises(UserError, match=f"{raw / 'ImageNet' / file}.* {problem}"):
        convert(raw, "imagenet", "val")


@of("imagenet")
def test_a_row_of_imagenet_that_is_refused_is_looked_for_in_the_file_that_has_it(raw):
    (rejected,) = prepare_release(raw, raw / "runs", "imagenet", test="val").rejected
    assert (rejected["file"], rejected["place"]) == ("LOC_val_solution.csv", "line 8")


def test_the_hundred_names_of_the_prompt_stand_for_a_hundred_and_one_synsets():
    prompt, names = config_of("imagenet")["prompt"], list(CLASSES.values())
    assert list(dict.fromkeys(names)) == prompt.removesuffix(".").partition("choices below: ")[2].split(", ")
    assert len(names) == 101 and {name for name in names if names.count(name) > 1} == {"Maillot"}


# --- VQAv2 -----------------------------------------------------------------------------------------------------------


@of("vqav2")
def test_the_order_of_the_annotations_does_not_matter(raw):
    before = convert(raw, "vqav2", "val2014")
    annotations = raw / load_release("vqav2").FILES["val2014"][1]
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content | {"annotations": content["annotations"][::-1]}))
    assert convert(raw, "vqav2", "val2014") == before


@of("vqav2")
def test_annotations_are_read_no_further_than_their_question(raw):
    questions, annotations = (raw / file for file in load_release("vqav2").FILES["val2014"])
    annotations.write_text(annotations.read_text()[:-200])
    assert next(load_release("vqav2").convert("val2014", questions, annotations)).value["answer"] == "net"


# --- REC -------------------------------------------------------------------------------------------------------------


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


# --- VizWiz ----------------------------------------------------------------------------------------------------------


@of("vizwiz")
@pytest.mark.parametrize(("split", "image", "place"), [("train", 1, ", annotations 5"), ("val", 23433, "")])
def test_a_caption_of_a_picture_that_is_not_listed_is_named(raw, split, image, place):
    file = raw / f"VizWiz/annotations/{split}.json"
    file.write_text(file.read_text().replace(f'"image_id": {image}', '"image_id": 99'))
    with pytest.raises(UserError, match=f"{file}{place}: .* not listed, with the ids? 99"):
        convert(raw, "vizwiz", split)


@of("vizwiz")
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_questions_of_a_split_do_not_depend_on_what_comes_first_in_the_file(raw, split):
    before = convert(raw, "vizwiz", split)
    file = raw / f"VizWiz/annotations/{split}.json"
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert convert(raw, "vizwiz", split) == before


# --- Flickr30k -------------------------------------------------------------------------------------------------------


@of("flickr30k")
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
def test_a_fault_in_the_table_of_flickr30k_names_its_row(raw, columns, row, problem):
    table = raw / "Flickr30k/flickr_annotations_30k.csv"
    flickr30k.write_table(table, columns, [row])
    with pytest.raises(UserError, match=f"{table}, {problem}"):
        convert(raw, "flickr30k", "val")


# --- Screen2Words ----------------------------------------------------------------------------------------------------


@of("screen2words")
def test_a_line_without_a_summary_is_named(raw):
    summaries = raw / "Screen2words/screen_summaries.csv"
    summaries.write_text("screenId,summary\n\n54137\n")
    with pytest.raises(UserError, match=f"{summaries}, line 3: expected a screen, a comma and a summary"):
        convert(raw, "screen2words", "test")


# --- ImageNet-R ------------------------------------------------------------------------------------------------------


@of("imagenet_r")
@pytest.mark.parametrize("archive", ["imagenet-r.tar", "imagenet-r/imagenet-r.tar"])
def test_the_pictures_of_an_archive_are_those_of_its_folders(raw, archive):
    imagenet_r.write(raw / "other", archive)
    texts, rejected = [], []
    for folder in (raw, raw / "other"):
        task = prepare_release(folder, raw / "runs" / folder.name, "imagenet_r", test="test")
        texts.append(
            {name: (one.text, one.answer, Path(one.image).parts[-2:]) for name, one in task.examples["test"].items()}
        )
        rejected.append([one["row"] for one in task.rejected])
    assert texts[0] == texts[1] and rejected[0] == rejected[1]


@of("imagenet_r")
def test_numbered_questions_of_imagenet_r_keep_the_name_of_their_file_and_class(raw):
    rows = enumerate(convert(raw, "imagenet_r", "test"), start=1)
    numbered = {example.question_id: example.details for example in (parse_example(row.value, n) for n, row in rows)}
    assert numbered["1"] == {"question_id": "art_1.jpg", "wnid": "n01443537"}
    assert numbered["3"] == {"question_id": "art_1.jpg", "wnid": "n01484850"}


@of("imagenet_r")
def test_a_class_without_a_picture_is_refused(raw):
    (raw / "imagenet-r/n01484850/art_1.jpg").unlink()
    problem = r"README.txt names classes of which no picture .*: n01484850 \(great_white_shark"
    with pytest.raises(UserError, match=problem):
        convert(raw, "imagenet_r", "test")


def test_an_archive_that_is_none_is_refused(tmp_path):
    imagenet_r.write(tmp_path, "imagenet-r.tar")
    (tmp_path / "imagenet-r.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match="imagenet-r.tar cannot be read as an archive of pictures"):
        convert(tmp_path, "imagenet_r", "test")
