"""The score stage: which predictions it refuses, what it counts, what it writes."""

from __future__ import annotations

import pytest

from eval.metrics.answers import ANSWER_METRICS
from eval.questions import explain_unreadable
from eval.score import align, score, score_predictions
from eval.settings import Scoring
from robustmerge.stage.address import address_file, address_foreign
from robustmerge.stage.records import Example, Prediction, read_score, write_examples, write_predictions
from robustmerge.stage.settings import UserError

SETTINGS = Scoring("vqav2", "text", "exact_match")
EXAMPLES = [Example(f"q{i}", "What?", answer) for i, answer in enumerate(["red", "blue", "green", "two"])]
ANSWERS = [
    Prediction("q0", "Red."),
    Prediction("q1", ""),
    Prediction("q2", "", "broken"),
    Prediction("q3", "3"),
]


def stage(folder, predictions, settings=SETTINGS, examples=EXAMPLES):
    questions, answers = folder / "test.jsonl", folder / "answers.jsonl"
    write_examples(questions, examples)
    write_predictions(answers, predictions)
    inputs = {"questions": address_foreign(questions), "predictions": address_foreign(answers)}
    address = address_file(folder, folder / "scores" / f"{settings.task}.json", "score", 1, settings, inputs)
    return address, score(address, settings, questions, answers)


def test_a_score_keeps_the_value_of_every_question_and_counts_what_went_wrong(tmp_path):
    address, path = stage(tmp_path, ANSWERS)
    scored = read_score(path)
    assert address.is_complete()
    assert scored.value == 25.0 and scored.metric == "exact_match" and scored.task == "vqav2"
    assert scored.values == {"q0": 1.0, "q1": 0.0, "q2": 0.0, "q3": 0.0}
    assert (scored.n_expected, scored.n_scored, scored.n_empty, scored.n_unparsed, scored.n_failed) == (
        4,
        2,
        1,
        0,
        1,
    )


def test_the_order_of_predictions_does_not_matter():
    assert score_predictions(SETTINGS, EXAMPLES, ANSWERS[::-1]) == score_predictions(SETTINGS, EXAMPLES, ANSWERS)


def test_missing_doubled_and_unknown_ids_are_refused_together_before_anything_is_scored(tmp_path, monkeypatch):
    def scorer(answer, references):
        raise AssertionError("a scorer ran")

    monkeypatch.setitem(ANSWER_METRICS, "exact_match", scorer)
    wrong = [ANSWERS[0], ANSWERS[0], ANSWERS[1], Prediction("q9", "red")]
    with pytest.raises(UserError) as caught:
        stage(tmp_path, wrong)
    for part in ("2 missing (q2, q3)", "1 doubled (q0)", "1 unknown (q9)", "answers.jsonl", "test.jsonl"):
        assert part in str(caught.value)


def test_a_file_with_a_cut_last_line_is_refused_as_incomplete(tmp_path):
    stage(tmp_path, ANSWERS)
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-3])
    address = address_file(tmp_path, tmp_path / "again.json", "score", 1, SETTINGS, {})
    with pytest.raises(UserError, match=r"1 missing \(q3\)"):
        score(address, SETTINGS, tmp_path / "test.jsonl", answers)


def test_predictions_that_do_not_exist_are_said_to_be_missing(tmp_path):
    address = address_file(tmp_path, tmp_path / "x.json", "score", 1, SETTINGS, {})
    with pytest.raises(UserError, match="run predict first"):
        score(address, SETTINGS, tmp_path / "test.jsonl", tmp_path / "none.jsonl")


def test_an_empty_question_file_is_refused():
    with pytest.raises(UserError, match="no question"):
        align([], [])


def test_a_reference_that_the_parser_cannot_read_is_the_question_files_mistake(tmp_path):
    with pytest.raises(UserError, match="question q1: its answer 'many' cannot be read with parse=number"):
        score_predictions(
            Scoring("tabmwp", "number", "exact_match"),
            [Example("q0", "?", "5"), Example("q1", "?", "many")],
            [Prediction("q0", "5"), Prediction("q1", "5")],
        )


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert stage(tmp_path / "a", ANSWERS)[1].read_bytes() == stage(tmp_path / "b", ANSWERS)[1].read_bytes()


def test_the_mean_iou_is_a_part_of_a_box_score_and_an_answer_without_a_box_counts_as_0():
    boxes = [Example(name, "Where?", "[0,0,2,2]") for name in ("half", "none")]
    answers = [Prediction("half", "[1,0,3,2]"), Prediction("none", "left")]
    scored = score_predictions(Scoring("rec", "box", "iou_at_half"), boxes, answers)
    assert (scored.value, scored.n_unparsed) == (0.0, 1) and scored.parts["mean_iou"] == pytest.approx(100 / 6)


@pytest.mark.parametrize(
    ("answer", "choices", "problem"),
    [
        ("B", ("red", "blue"), ""),
        ("blue", ("red", "blue"), ""),
        ("20", ("10", "20"), ""),
        ("0", ("red", "blue"), "cannot be read with parse=letter; give the letter of a choice, A to B"),
        ("1", ("0", "1", "2"), "may be the text of a choice or its number; give the letter of a choice, A to C"),
        ("C", ("red", "blue"), "cannot be read"),
    ],
)
def test_an_answer_is_the_letter_or_the_text_of_a_choice_and_never_its_number(answer, choices, problem):
    explained = explain_unreadable("letter", Example("1", "Which?", answer, choices=choices))
    assert problem in explained and bool(explained) == bool(problem)
