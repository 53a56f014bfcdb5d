"""The published scorers, to the digit and with their faults. Needs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eval.metrics.answers import intersection_over_union
from eval.metrics.official import OFFICIAL_METRICS, OPTIONS
from eval.parse import parse_box, parse_letter
from eval.report.notes import FOOTNOTES
from eval.score import score_predictions
from eval.settings import OFFICIAL_NAMES, Scoring
from robustmerge.stage.records import Example, Prediction, read_examples
from robustmerge.stage.settings import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "scorers"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
BOX = Example("1", "?", "[0.6,0.26,0.73,0.54]", size=(427, 640))
CHOICE = Example("1", "?", "B", choices=("x", "y", "z"))
# By metric: a question and an answer that its script takes for right.
RIGHT = {
    "official_equal": (Example("1", "?", "left"), "LEFT"),
    "official_ocrvqa": (Example("1", "?", "Mystery, Thriller"), "mystery, thriller"),
    "official_rec": (BOX, "(0.6,0.26,0.73,0.54)"),
    "official_scienceqa": (CHOICE, "B"),
    "official_substring": (Example("1", "?", "Whippet"), "a whippet."),
}


def questions_of(folder: Path, answers: list[dict]) -> list[Example]:
    if (folder / "ann.json").exists():
        return read_examples(folder / "ann.json")
    problems = json.loads((folder / "problems.json").read_text())
    pictures = {answer["question_id"]: "x.png" for answer in answers if "<image>" in answer["prompt"]}
    return [
        Example(
            name, "?", OPTIONS[problems[name]["answer"]], pictures.get(name), choices=tuple(problems[name]["choices"])
        )
        for name in json.loads((folder / "pid_splits.json").read_text())["test"]
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_golden_answers_score_what_the_published_scripts_print(name):
    answers = [json.loads(line) for line in (GOLDEN / name / "res.jsonl").read_text().splitlines()]
    predictions = [Prediction(str(answer["question_id"]), answer["text"]) for answer in answers]
    settings = Scoring(name, "raw", EXPECTED[name]["metric"])
    scored = score_predictions(settings, questions_of(GOLDEN / name, answers), predictions[::-1])
    assert f"{scored.value:.2f}" == EXPECTED[name]["value"]
    if "with_picture" in EXPECTED[name]:
        assert f"{scored.parts['with_picture']:.2f}" == EXPECTED[name]["with_picture"]


def test_every_golden_folder_is_scored_and_every_scorer_has_one():
    assert {folder.name for folder in GOLDEN.iterdir() if folder.is_dir()} == set(EXPECTED)
    assert {expected["metric"] for expected in EXPECTED.values()} == set(OFFICIAL_METRICS)


def test_the_names_in_the_settings_are_the_names_of_the_table_and_each_has_its_footnote():
    assert tuple(sorted(OFFICIAL_METRICS)) == OFFICIAL_NAMES
    assert set(FOOTNOTES) == {*OFFICIAL_NAMES, "mean_of_seven", "crop"}


@settings(deadline=None)
@given(text=st.text())
def test_any_answer_is_right_or_wrong_and_nothing_between(text):
    for metric, (example, right) in RIGHT.items():
        assert OFFICIAL_METRICS[metric](right, example) == 1.0
        assert OFFICIAL_METRICS[metric](text, example) in (0.0, 1.0)


@settings(deadline=None)
@given(right=st.text(), other=st.text())
def test_imagenet_takes_nothing_and_everything_for_right(right, other):
    example = Example("1", "?", right)
    assert OFFICIAL_METRICS["official_substring"]("", example) == 1.0
    assert OFFICIAL_METRICS["official_substring"](f"{other}, {right}, {other}", example) == 1.0


@pytest.mark.parametrize("text", ["3.", "three", "3 ", "$3"])
def test_an_answer_that_is_written_otherwise_is_wrong(text):
    assert OFFICIAL_METRICS["official_equal"](text, Example("1", "?", "3")) == 0.0


def test_only_the_first_reference_counts():
    example = Example("1", "?", "red", references=("red", "crimson", "crimson"))
    assert OFFICIAL_METRICS["official_equal"]("crimson", example) == 0.0


def test_unanswerable_is_never_right_in_ocr_vqa():
    for answer in ("Unanswerable", "Unanswerable questions"):
        assert OFFICIAL_METRICS["official_ocrvqa"](answer, Example("1", "?", answer)) == 0.0
    assert OFFICIAL_METRICS["official_ocrvqa"]("unanswerable", Example("1", "?", "Unanswerable")) == 1.0


hundredths = st.integers(0, 100).map(lambda whole: f"{whole / 100:.2f}")
corners = st.tuples(hundredths, hundredths, hundredths, hundredths)


@settings(deadline=None)
@given(answer=corners)
def test_a_box_in_brackets_loses_its_last_digit_and_one_in_parentheses_does_not(answer):
    inner, rule = ",".join(answer), OFFICIAL_METRICS["official_rec"]
    assert rule(f"[{inner}]", BOX) == rule(f"({inner[:-1]})", BOX)
    assert rule(f"[[{inner}]].", BOX) == rule(f"({inner})", BOX)
    assert rule(f"The box is [{inner}]", BOX) == 0.0


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(answer=corners, side=st.integers(1, 4000))
def test_an_upright_box_that_is_read_whole_counts_as_it_should_whatever_the_size(answer, side):
    assume(answer[0] <= answer[2] and answer[1] <= answer[3])
    text = f"({','.join(answer)})"
    overlap = intersection_over_union(parse_box(text), parse_box(BOX.answer))
    assume(abs(overlap - 0.5) > 1e-9)  # there the size decides how it is rounded
    assert OFFICIAL_METRICS["official_rec"](text, replace(BOX, size=(side, 1))) == float(overlap > 0.5)


@pytest.mark.parametrize("text", ["", "[]", "[nan,nan,nan,nan]", "[0.6,0.26,0.73]", "[0.6,0.26,0.73,0.54,1]", "left"])
def test_what_is_no_box_is_a_miss(text):
    assert OFFICIAL_METRICS["official_rec"](text, BOX) == 0.0


def test_a_reference_that_is_no_box_is_refused():
    with pytest.raises(UserError, match="question 1: the reference 'left' is no box"):
        OFFICIAL_METRICS["official_rec"]("[0,0,1,1]", Example("1", "?", "left"))


@pytest.mark.parametrize("text", ["b", "B.", "B)", "(B)", "B ", "The answer is B", "the answer is B.", "y", "D", ""])
def test_scienceqa_does_not_know_a_letter_in_any_other_dress(text):
    assert OFFICIAL_METRICS["official_scienceqa"](text, CHOICE) == 0.0


@settings(deadline=None)
@given(right=st.sampled_from("ABC"), said=st.sampled_from("ABCDEF"), reason=st.sampled_from(["", " It is wet."]))
def test_a_letter_that_scienceqa_reads_the_corrected_parser_reads_too(right, said, reason):
    example = replace(CHOICE, answer=right)
    for text in (said, f"{said}. something{reason}", f"The answer is {said}.{reason}"):
        assert OFFICIAL_METRICS["official_scienceqa"](text, example) == float(said == right)
        assert (parse_letter(text, CHOICE.choices) == right) == (said == right)


def test_two_statements_are_none_and_a_letter_beyond_the_choices_is_wrong():
    rule = OFFICIAL_METRICS["official_scienceqa"]
    assert rule("The answer is A. No: The answer is B.", CHOICE) == 0.0
    assert rule("E", replace(CHOICE, answer="E")) == 0.0
    assert rule("E", replace(CHOICE, answer="E", choices=())) == 1.0
