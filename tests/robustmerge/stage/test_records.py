"""Records in files: what is written is read back, and what is wrong is named. Needs nothing."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmerge.stage.records import (
    Example,
    Prediction,
    Score,
    append_predictions,
    find_picture_name,
    read_examples,
    read_predictions,
    read_score,
    write_examples,
    write_predictions,
    write_score,
)
from robustmerge.stage.settings import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]))


def test_examples_come_back_as_they_were(tmp_path):
    examples = [
        Example("1", "Where is the star?", "[0.25,0.50,0.42,0.75]", "images/1.png", size=(48, 32)),
        Example("2", "Which?", "A", choices=("red", "blue"), references=("A", "a")),
        Example("3", "What?", "a", turns=(("And?", "b"), ("Then?", "c"))),
    ]
    write_examples(tmp_path / "test.jsonl", examples)
    assert read_examples(tmp_path / "test.jsonl") == examples


def test_llavas_question_files_are_understood(tmp_path):
    records = [
        {"question_id": 7, "image": "./a.jpg", "text": "<image>\nWhat?", "answer": "cat", "category": "x"},
        {"question_id": "8", "image": "b.jpg", "text": "Box?", "answer_bbox": "[0,0,1,1]", "size": [640, 480]},
        {
            "id": "9",
            "image": "c.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWho?"},
                {"from": "gpt", "value": "a dog"},
                {"from": "human", "value": "Colour?"},
                {"from": "gpt", "value": "red"},
            ],
        },
    ]
    (tmp_path / "test.json").write_text(json.dumps(records))
    assert read_examples(tmp_path / "test.json") == [
        Example("7", "What?", "cat", "./a.jpg", category="x"),
        Example("8", "Box?", "[0,0,1,1]", "b.jpg", size=(640, 480)),
        Example("9", "Who?", "a dog", "c.jpg", turns=(("Colour?", "red"),)),
    ]


CAT = {"question_id": "1", "text": "What?", "answer": "cat"}


def test_numbers_are_texts_and_what_is_null_is_not_there(tmp_path):
    boxed = {"question_id": 2, "text": "Where?", "answer_bbox": [0, 0.5, 1, 1]}
    records = [{**CAT, "answer": 3, "references": [3, "three"], "choices": None, "image": None, "size": None}, boxed]
    (tmp_path / "test.json").write_text(json.dumps(records))
    assert read_examples(tmp_path / "test.json") == [
        Example("1", "What?", "3", references=("3", "three")),
        Example("2", "Where?", "[0, 0.5, 1, 1]"),
    ]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"question_id": "1", "text": "What?"}], "record 1: field 'answer' is missing"),
        ([{"question_id": "1", "text": "a", "answer": "b"}] * 2, "question_id is not unique: 1"),
        (["what"], 'a record must be an object, got "what"'),
        ("what", 'a record must be an object, got "what"'),
        ([{**CAT, "references": "cat"}], "field 'references' must be a list of texts or numbers, got \"cat\""),
        ([{**CAT, "references": ["cat", None]}], "an entry of field 'references' must be text or a number, got null"),
        ([{**CAT, "choices": "red"}], "field 'choices' must be a list of texts or numbers, got \"red\""),
        ([{**CAT, "choices": {"A": "red"}}], "field 'choices' must be a list"),
        ([{**CAT, "answer": None}], "field 'answer' must be text or a number, got null"),
        ([{**CAT, "answer": ["cat"]}], r"field 'answer' must be text or a number, got \[\"cat\"\]"),
        ([{**CAT, "answer": True}], "field 'answer' must be text or a number, got true"),
        ([{**CAT, "text": None}], "field 'text' must be text or a number, got null"),
        ([{**CAT, "question_id": None}], "field 'question_id' must be"),
        ([{**CAT, "image": ["a.png", "b.png"]}], "field 'image' must be the path of one picture"),
        ([{**CAT, "size": "640x480"}], "field 'size' must be"),
        ([{**CAT, "size": [math.inf, 5]}], r"field 'size' must be .*, got \[Infinity, 5\]"),
        ([{**CAT, "size": [640.5, 480]}], "field 'size' must be"),
        ([{**CAT, "size": [0, 480]}], "field 'size' must be"),
        ([{**CAT, "size": [10**400, 480]}], "field 'size' must be"),
        ([{**CAT, "answer": math.nan}], "field 'answer' must be text or a number, got NaN, as pandas"),
        ([{**CAT, "text": math.inf}], "field 'text' must be text or a number, got Infinity"),
        ([{**CAT, "question_id": math.nan}], "field 'question_id' must be"),
        ([{**CAT, "references": ["cat", math.nan]}], "an entry of field 'references' must be"),
        ([{**CAT, "choices": [{"A": 1}]}], "an entry of field 'choices' must be"),
        ([{**CAT, "choices": [*"abcdefghijklmnopqrstuvwxyz1"]}], "'choices' has 27 options; there are letters for 26"),
        ([{**CAT, "answer_bbox": [0, 0, 1, math.nan]}], "an entry of field 'answer_bbox' must be"),
        ([CAT, {**CAT, "question_id": 1}, {**CAT, "question_id": 1.0}], "question_id is not unique: 1"),
        (
            [{"instruction": "What?", "output": "cat"}],
            "'question_id' is missing .* 'instruction', 'output'",
        ),
        ([{**CAT, "image": ""}], "field 'image' must be the path of one picture"),
        ([{**CAT, "image": math.nan}], "field 'image' must be .*, got NaN, as pandas"),
        ([{**CAT, "image": "a\0.png"}], "field 'image' must be the path of one picture"),
        ([{**CAT, "image": "x" * 2000}], "of at most 1000 characters"),
        ([{**CAT, "image": {"bytes": None, "path": "a.png"}}], "a dataset holds the picture itself; save it as a file"),
        ([{**CAT, "images": ["a.png", "b.png"]}], "field 'images' must be the path of one picture"),
        ([{**CAT, "images": ["a.png"], "image": "b.png"}], "name different pictures"),
        ([{**CAT, "text": "<image>What?", "images": []}], "the text has <image>, but no picture is named: .*'images'"),
        ([{**CAT, "text": "<image>What?", "photo": "a.png"}], "the text has <image>, .* its fields are .*'photo'"),
        ([{**CAT, "text": "<image><image>What?", "image": "a.png"}], "<image> must stand once at most"),
        ([{**CAT, "image": "a.png", "turns": [["<image>And?", "so"]]}], "<image> must stand once at most"),
        ([{**CAT, "image": "a.png", "choices": ["<image>", "red"]}], "<image> must stand once at most"),
        ([{**CAT, "text": "<ima<image>ge>What?", "image": "a.png"}], "<image> must stand once at most"),
        ([{**CAT, "videos": ["a.mp4"]}], "field 'videos' cannot be used: a question has one picture or none"),
        ([{"id": 1, "messages": [{"role": "system", "content": "Be brief."}]}], "a conversation is user, assistant"),
        ([{**CAT, "turns": ["ab"]}], r"field 'turns' must be a list of \[question, answer\]"),
        ([{"id": "1", "conversations": "a"}], "field 'conversations' must be a list of messages"),
        ([{"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]}], "'value' is missing"),
        ([{"id": "1", "conversations": [{"from": "human", "value": "a"}]}], "a conversation is human, gpt"),
    ],
)
def test_a_bad_question_file_is_refused_with_its_place(tmp_path, records, said):
    (tmp_path / "bad.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match=said):
        read_examples(tmp_path / "bad.json")


SAID = {name: [{speaker: one, text: value} for one, value in zip(who, ("<image>\nWhat?", "cat"), strict=True)]
        for name, speaker, text, who in (("conversations", "from", "value", ("human", "gpt")),
                                         ("messages", "role", "content", ("user", "assistant")))}  # fmt: skip


@pytest.mark.parametrize("dialogue", SAID)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": "Who?"}, "fields 'text' .* and '{}' .* differ: keep one"),
        ({"answer": "dog"}, "fields 'answer' .* and '{}' .* differ: keep one"),
        ({"turns": [["And?", "so"]]}, "field '{}' cannot stand beside another dialogue"),
    ],
)
def test_two_dialogues_in_a_record_are_refused_unless_they_say_the_same(tmp_path, dialogue, more, said):
    record = {**CAT, "image": "a.png", **SAID}
    (tmp_path / "test.json").write_text(json.dumps([record]))
    assert read_examples(tmp_path / "test.json") == [Example("1", "What?", "cat", "a.png")]
    (tmp_path / "bad.json").write_text(json.dumps([{**CAT, "image": "a.png", dialogue: SAID[dialogue], **more}]))
    with pytest.raises(UserError, match=said.format(dialogue)):
        read_examples(tmp_path / "bad.json")


@pytest.mark.parametrize("form", ["[{}]", "{}\n{}\n"])
def test_a_field_that_a_record_has_twice_is_refused(tmp_path, form):
    (tmp_path / "bad.json").write_text(form.replace("{}", json.dumps(CAT)[:-1] + ', "answer": "dog"}'))
    with pytest.raises(UserError, match=r"bad\.json.* is not valid JSON: the key 'answer' occurs twice in an object"):
        read_examples(tmp_path / "bad.json")


def test_two_answers_in_a_record_are_refused_unless_they_are_the_same(tmp_path):
    for answer in ("[1,2, 3, 4]", [1, 2, 3, 4], "", None, "cat"):
        (tmp_path / "test.json").write_text(json.dumps([{**CAT, "answer": answer, "answer_bbox": [1, 2, 3, 4]}]))
        if answer == "cat":
            with pytest.raises(UserError, match="'answer' .* and 'answer_bbox' .* differ"):
                read_examples(tmp_path / "test.json")
        else:
            assert read_examples(tmp_path / "test.json")[0].answer == "[1, 2, 3, 4]"


PLAIN = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "cat"}]
NAMED = {**CAT, "question_id": "0", "image": "a.png"}


@pytest.mark.parametrize(
    ("place", "more"),
    [
        *((name, {name: "a.png"}) for name in ("photo", "pic", "file", "image_1", "imageUrl")),
        *(("file", {"file": value}) for value in ("a.PPM", "a.jfif", "a.heic", "a.avif", "a.tif", " a.png ")),
        *(("file", {"file": value}) for value in ("https://x/a.jpg?w=1", "data:image/png;base64,iVBO", ["", "a.png"])),
        *((name, {name: "iVBO"}) for name in ("image_base64", "image_bytes", "img", "Image")),
        *((name, {name: "a"}) for name in ("video_path", "Video", "audio_file", "image_file")),
        ("image_id", {"image_id": 7}),
        ("file.path", {"file": {"path": "a.png"}}),
        ("file.bytes", {"file": [{"bytes": "iVBO"}]}),
        ("metadata.image", {"metadata": {"image": "a"}}),
        ("messages.images", {"messages": [{**message, "images": ["a.png"]} for message in PLAIN]}),
    ],
)
def test_a_picture_under_another_name_is_refused_whatever_other_records_name(tmp_path, place, more):
    (tmp_path / "bad.json").write_text(json.dumps([NAMED, {**CAT, **more}]))
    with pytest.raises(UserError, match=f"record 2: no picture is named in field 'image', but field '{place}'"):
        read_examples(tmp_path / "bad.json")


def test_texts_that_end_as_pictures_do_and_what_is_empty_name_no_picture(tmp_path):
    texts = dict.fromkeys(("id", "text", "answer"), "a.png") | {"references": ["a.png"], "choices": ["a.png"]}
    nothing = {"photo": None, "image_url": " ", "has_image": False, "images": [], "img": [""], "picture": math.nan}
    said = [{"from": "human", "value": "a.png"}, {"from": "gpt", "value": "a.png"}]
    records = [
        {**texts, **nothing, "turns": [["a.png", "a.png"]], "category": "closed-choice"},
        {"id": 2, "conversations": said},
    ]
    (tmp_path / "test.json").write_text(json.dumps(records))
    assert [example.image for example in read_examples(tmp_path / "test.json")] == [None, None]


@pytest.mark.parametrize(
    "marker",
    ["<img>a.png</img>", "<Image>", "<IMAGE>", "<image/>", "<image_1>", "<image 1>", "<|image_1|>",
     "<|image_pad|>", "<|vision_start|>", "<ImageHere>", "[IMG]", "<ima<image>ge_1>", "< image >", "<start_of_image>",
     "<fake_token_around_image>", "<IMG_CONTEXT>", "<video>", "<img>\n", "&lt;image&gt;"],
)  # fmt: skip
@pytest.mark.parametrize("image", [None, "a.png"])
def test_a_marker_of_another_format_is_refused_wherever_it_would_be_asked(tmp_path, marker, image):
    record = {**CAT, "image": image, "answer": "<img src='a.png'>"}
    later = marker.replace("<image>", "")
    for changed in ({"text": f"{marker}What?"}, {"turns": [[f"{later}And?", "so"]]}, {"choices": [later, "red"]}):
        (tmp_path / "bad.json").write_text(json.dumps([{**record, **changed}]))
        with pytest.raises(UserError, match=r"record 1: .*(would be asked as text|no picture is named)"):
            read_examples(tmp_path / "bad.json")
    (tmp_path / "test.json").write_text(json.dumps([{**record, "text": "What does <img> do?"}]))
    assert read_examples(tmp_path / "test.json")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"image_2": "b.png"}, r"'image_2' \('b.png'\) seems to name a further picture"),
        ({"right_image": "b.png"}, "'right_image' .* seems to name a further picture"),
        ({"answer": "see <image>"}, "an answer has <image>"),
        ({"answer": "B", "options": ["red", "blue"]}, "options in field 'options' would not be asked"),
        ({"answer": "B", "options": {"A": "red", "B": "blue"}}, "options in field 'options' would not be asked"),
        ({"answer": 1, "candidates": ["red", "blue"]}, "options in field 'candidates' would not be asked"),
        ({"answer": "B", "A": "red", "B": "blue", "C": None}, "options in field 'A' would not be asked"),
    ],
)
def test_what_another_format_says_beyond_what_would_be_asked_is_refused(tmp_path, fields, problem):
    (tmp_path / "bad.json").write_text(json.dumps([{**CAT, "image": "a.png", **fields}]))
    with pytest.raises(UserError, match=f"record 1: .*{problem}"):
        read_examples(tmp_path / "bad.json")


@pytest.mark.parametrize("field", ["system", "tools", "history"])
def test_what_would_be_asked_beside_a_dialogue_is_refused(tmp_path, field):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "cat"}]
    (tmp_path / "bad.json").write_text(json.dumps([{"id": 1, "conversations": said, field: "Answer in French."}]))
    with pytest.raises(UserError, match=f"field '{field}' would not be asked"):
        read_examples(tmp_path / "bad.json")
    (tmp_path / "test.json").write_text(json.dumps([{"id": 1, "conversations": said, field: ""}]))
    assert read_examples(tmp_path / "test.json")


def test_fields_that_say_no_more_than_the_question_are_left_out(tmp_path):
    shown = {"text": "What?\nA. red\nB. blue", "answer": "B", "options": ["red", "blue"]}
    open_ended = {"question_id": 2, "answer": "blue", "options": ["red", "blue"]}
    again = {"question_id": 3, "image": "a.png", "image_1": "a.png", "image_2": None}
    (tmp_path / "test.json").write_text(json.dumps([{**CAT, **more} for more in (shown, open_ended, again)]))
    assert [example.choices for example in read_examples(tmp_path / "test.json")] == [()] * 3


def test_a_whole_number_has_no_decimals_however_it_was_written(tmp_path):
    record = {"question_id": 2.0, "text": 7, "answer": 3.0, "references": [3.0, 0.5, 1e300], "choices": [1.0, 2.5]}
    (tmp_path / "test.json").write_text(
        json.dumps([record, {**CAT, "answer": None, "answer_bbox": [0.0, 1.0, 2, 0.5]}])
    )
    assert read_examples(tmp_path / "test.json") == [
        Example("2", "7", "3", references=("3", "0.5", "1e+300"), choices=("1", "2.5")),
        Example("1", "What?", "[0.0, 1.0, 2, 0.5]"),
    ]


@pytest.mark.parametrize(
    "named", [{"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}, {"images": "a.png"}]
)
def test_one_picture_is_read_under_either_name_alone_or_in_a_list(tmp_path, named):
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "cat"}]
    records = [{**CAT, "text": "<image>What?", **named, "videos": []}, {"id": 2, "messages": messages, **named}]
    (tmp_path / "test.json").write_text(json.dumps(records))
    assert read_examples(tmp_path / "test.json") == [Example(number, "What?", "cat", "a.png") for number in ("1", "2")]
    assert {find_picture_name(record) for record in records} == {"a.png"}


def test_a_line_of_gigabytes_is_not_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("robustmerge.stage.json_stream.LARGEST_ELEMENT", 100)
    (tmp_path / "test.jsonl").write_text(json.dumps(CAT) + "\n" + json.dumps({**CAT, "text": "x" * 100}))
    with pytest.raises(UserError, match=r"test\.jsonl, line 2 is not valid JSON: it is longer than 100 bytes"):
        read_examples(tmp_path / "test.jsonl")


RECORDS = [CAT, {**CAT, "question_id": "2", "answer": "dé"}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
FILES = [LINES, json.dumps(RECORDS, indent=1), LINES.replace("\n", "\r\n\r\n"), "\ufeff" + LINES]


@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
@pytest.mark.parametrize(
    "text", [LINES, json.dumps(RECORDS, indent=1), LINES.replace("\n", "\r\n\r\n"), "\ufeff" + LINES]
)
def test_a_list_and_lines_are_told_apart_by_what_they_are(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert [example.answer for example in read_examples(tmp_path / name)] == ["cat", "dé"]


def test_an_empty_question_file_has_no_question(tmp_path):
    for name in ("test.json", "test.jsonl"):
        (tmp_path / name).write_text(" \n")
        assert read_examples(tmp_path / name) == []


@pytest.mark.parametrize("reader", [read_examples, read_predictions, read_score])
@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"a": ' * 200, "9" * 5000, r'{"text": "\ud800"}', '{"text": "\xff"}', "7", "{", "\0"]
)
def test_every_reader_names_the_file_that_is_no_json_of_its_kind(tmp_path, reader, line):
    file = tmp_path / "given.jsonl"
    file.write_bytes(f"{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"given\.jsonl"):
        reader(file)
    with pytest.raises(UserError, match="is a folder"):
        reader(tmp_path)


def test_many_bad_records_are_refused_in_one_short_message(tmp_path):
    (tmp_path / "test.jsonl").write_text("{}\n" * 50_000)
    with pytest.raises(UserError, match="line 5.*\n\\(and"):
        read_examples(tmp_path / "test.jsonl")


SCORE = Score("vqa", "exact_match", 50.0, 2, 2, 0, 0, 0, {"1": 1.0, "2": 0.0})


def test_a_score_comes_back_as_it_was(tmp_path):
    score = dataclasses.replace(SCORE, parts={"a": None}, statistics={"1": [1.0, 2.0]}, clusters={"1": "a.png"})
    write_score(tmp_path / "score.json", score)
    assert read_score(tmp_path / "score.json") == score


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("value", value) for value in ("50", math.nan, math.inf, True, 10**400, [50])),
        *(("n_expected", value) for value in (None, -1, 2.5, "2")),
        *(("values", value) for value in (None, [1.0], {"1": "a"}, {"1": None}, {"1": math.nan})),
        *(("statistics", value) for value in ({"1": 1.0}, {"1": ["a"]})),
        ("parts", {"a": "b"}), ("clusters", {"1": 2}), ("task", 5), ("unknown\x1b", 1),
    ],
)  # fmt: skip
def test_a_field_that_no_score_has_is_named(tmp_path, field, value):
    (tmp_path / "score.json").write_text(json.dumps({**vars(SCORE), field: value}))
    with pytest.raises(UserError, match=rf"score\.json is not a score: .*'{field[:7]}"):
        read_score(tmp_path / "score.json")


def test_a_question_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        read_examples(tmp_path / "nowhere.json")


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_any_answer_survives_its_file(tmp_path_factory, pairs):
    predictions = [Prediction(name, text) for name, text in pairs]
    path = tmp_path_factory.mktemp("predictions") / "answers.jsonl"
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_line_that_a_kill_has_cut_is_dropped(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        append_predictions(file, [Prediction("1", "é"), Prediction("2", "wörter")])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_predictions(path) == [Prediction("1", "é")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question_id": 1, "text": "a"}', "field 'question_id' must be text, got 1"),
        ('{"question_id": "1", "text": null}', "field 'text' must be text, got null"),
        ('{"question_id": "1", "text": ["a"]}', "field 'text' must be text"),
        ('{"question_id": "1"}', "text"),
        ('["1", "a"]', ""),
    ],
)
def test_what_is_no_prediction_is_refused_with_its_line(tmp_path, line, said):
    (tmp_path / "answers.jsonl").write_text(f'{{"question_id": "0", "text": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=f"line 2: not a prediction.*{said}"):
        read_predictions(tmp_path / "answers.jsonl")


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        '{"question_id": "1", "text": "a"}\n{"quest\n{"question_id": "2", "text": "b"}\n'
    )
    with pytest.raises(UserError, match="line 2"):
        read_predictions(tmp_path / "answers.jsonl")
