"""Records in files: what is written is read back, and what is wrong is named. Needs nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmerge.stage.records import (
    Example,
    Prediction,
    append_predictions,
    read_examples,
    read_predictions,
    write_examples,
    write_predictions,
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
        Example("7", "What?", "cat", "./a.jpg"),
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
