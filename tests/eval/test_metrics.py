"""Reading answers and comparing them: every parser and metric on perfect, empty and malformed answers."""

from __future__ import annotations

import pytest

from eval.metrics.answers import ANSWER_METRICS, exact_match, intersection_over_union, ngram_f1, normalise, vqa_soft
from eval.metrics.grouped import GROUP_METRICS
from eval.parse import PARSERS, parse_box, parse_letter, parse_number, parse_text
from eval.questions import read_prompts
from eval.settings import ANSWER_NAMES, GROUP_NAMES, PARSER_NAMES, Bootstrap, Generation, Logger, Scoring, Task
from robustmerge.stage.prompts import PLACEHOLDERS, render
from robustmerge.stage.records import Example, Prediction, write_examples
from robustmerge.stage.settings import ConfigError, UserError, build

TASK = {
    "name": "vqav2",
    "title": "VQAv2",
    "seen": True,
    "prompt": "{text}\nAnswer the question using a single word or phrase.",
    "max_new_tokens": 8,
    "parse": "text",
    "metric": "exact_match",
}
GENERATION = {"task": "rec", "prompt": "{text}", "template": "plain", "max_new_tokens": 8, "batch_size": 2}


def test_the_names_in_the_settings_are_the_names_of_the_tables():
    assert tuple(sorted(PARSERS)) == PARSER_NAMES
    assert tuple(sorted(ANSWER_METRICS)) == ANSWER_NAMES
    assert tuple(sorted(GROUP_METRICS)) == GROUP_NAMES


# One question a metric: references, and an answer that is right, wrong and unreadable (None: nothing is).
QUESTIONS = {
    ("text", "exact_match"): (["Red"], "red", "blue", None),
    ("letter", "exact_match"): (["B"], "B. blue", "A", "none of these"),
    ("number", "exact_match"): (["1,000"], "1000", "999", "many"),
    ("text", "vqa_soft"): (["red"] * 10, "red", "blue", None),
    ("text", "ngram_f1"): (["a small red star"], "a small red star", "nothing alike", None),
    ("yes_no", "exact_match"): (["yes"], "Yes, it is red.", "There is no star.", "yes or no"),
    ("yes_no", "f1_of_yes"): (["yes"], "Yes.", "no", "it is red"),
    ("yes_no", "accuracy_plus"): (["no"], "no, it is red", "yes", "nobody knows"),
    ("label", "top_1"): (["sea or lake"], "sea or lake\nriver", "river\nsea or lake", None),
    ("letter", "circular"): (["B"], "blue", "A", "none of these"),
    ("box", "iou_at_half"): (["[0.6,0.26,0.73,0.54]"], "[0.6, 0.26, 0.73, 0.54]", "[0, 0, 0.1, 0.1]", "left"),
}


@pytest.mark.parametrize(("parse", "metric"), QUESTIONS, ids=lambda name: name)
def test_a_perfect_answer_scores_100_and_wrong_empty_or_malformed_ones_0(parse, metric):
    from eval.score import score_predictions

    references, right, wrong, malformed = QUESTIONS[parse, metric]
    example = Example("1", "?", references[0], references=tuple(references), choices=("red", "blue"))
    settings = Scoring("task", parse, metric)

    def scored(text: str):
        return score_predictions(settings, [example], [Prediction("1", text)])

    assert scored(right).value == 100.0 and scored(right).n_scored == 1
    assert scored(wrong).value == 0.0 and scored(wrong).n_scored == 1
    for empty in ("", "  \n", "\u2028"):
        assert scored(empty).value == 0.0 and scored(empty).n_empty == 1
    if malformed is not None:
        assert scored(malformed).value == 0.0 and scored(malformed).n_unparsed == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b", "B"),
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) blue", "B"),
        ("B. blue", "B"),
        ("The answer is B", "B"),
        ("the answer is b because of its colour", "B"),
        ("Answer: (B).", "B"),
        ("the answer is option B.", "B"),
        ("blue", "B"),
        ("Blue.", "B"),
        ("I would take (B) here", "B"),
        ("option B", "B"),
        ("Option b.", "B"),
        ("it is option B", "B"),
        ("It is B.", "B"),
        ("It's B", "B"),
        ("The correct option is (B)", "B"),
        ("**B**", "B"),
        ("**B.** blue", "B"),
        ("The answer is **B**", "B"),
        ("`B`", "B"),
        ("B is correct", "B"),
        ("B is the right answer.", "B"),
        ("B, blue", "B"),
        ("Option B, because it's blue", "B"),
        ("A, because I see a dog", "A"),
        ("B is wrong", None),
        ("not option B", None),
        ("option B is not it", None),
        ("option A or option B", None),
        ("A, B", None),
        ("a, b or c", None),
        ("B, A", None),
        ("b, a", None),
        ("a dog", None),
        ("**A dog**", None),
        ("it is a dog", None),
        ("option Z", None),
        ("A dog", None),
        ("the answer is a dog", None),
        ("Z", None),
        ("(A) or (B)", None),
        ("The answer is A, B", None),
        ("the answer is B, not A", "B"),
        ("The answer is A, a dog", "A"),
        ("The answer is A. The answer is B.", None),
        ("The answer is B. So the answer is B.", "B"),
        ("A. B. C.", None),
        ("b. B. b.", "B"),
        ("A.\nB.\nC.", None),
        ("A. red\nB. blue\nC. green", None),
        ("B. blue, which has vitamin C.", "B"),
        ("yellow", None),
        ("", None),
    ],
)
def test_a_letter_is_read_however_it_is_dressed(text, expected):
    assert parse_letter(text, ("red", "blue", "green")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", "7"),
        ("7.", "7"),
        ("7.0", "7"),
        ("-7", "-7"),
        ("$1,234.50", "2469/2"),
        ("1/2", "1/2"),
        (".5", "1/2"),
        ("3 1/2", "7/2"),
        ("-3 1/2", "-7/2"),
        ("50 %", "50"),
        ("3-5", "5"),
        ("three", "3"),
        ("There are Three stars", "3"),
        ("3 + 4 = 7", "7"),
        ("1e3", "1000"),
        ("1/0", None),
        ("9" * 5000, None),
        ("9" * 4290 + "e99", None),
        ("9" * 3000 + "." + "9" * 3000, None),
        ("x1", None),
        ("no", None),
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("- 5", "-5"),
        ("minus five", "-5"),
        ("-$5", "-5"),
        ("x = - 5", "-5"),
        ("Q1: -5", "-5"),
        ("3 - 5 = \u22122", "-2"),
        ("2½", "5/2"),
        ("five hundred", None),
        ("twenty one", None),
        ("twenty-one", None),
        ("one hundred and five", None),
        ("5 million", None),
        ("5k", None),
        ("two dozen", None),
        ("two thirds", None),
        ("two and a half", None),
        ("3 + 17 = twenty", None),
        ("three point five", None),
        ("5 points", "5"),
        ("1,00", None),
        ("0,500", None),
        ("1,2", None),
        ("1,23,456", None),
        ("1,234,567", "1234567"),
        ("1.000.000", None),
        ("1 000", None),
        ("3:30", None),
        ("10^3", None),
        ("5²", None),
        ("1e400", None),
        ("1, 2, 3", "3"),
        ("5 cm", "5"),
        ("5cm", "5"),
    ],
)
def test_a_number_is_read_exactly(text, expected):
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.6,0.26,0.73,0.54]", (0.6, 0.26, 0.73, 0.54)),
        ("[ 6 , 2 , 10 , 5 ]", (6, 2, 10, 5)),
        ("(0.6, 0.26, 0.73, 0.54).", (0.6, 0.26, 0.73, 0.54)),
        ("[[0.6, 0.26, 0.73, 0.54]]", (0.6, 0.26, 0.73, 0.54)),
        ("In picture 3 the box is [.6, .26, .73, .54], as asked", (0.6, 0.26, 0.73, 0.54)),
        ("x1=1 y1=2 x2=3 y2=4", (1, 2, 3, 4)),
        ("[0.73,0.54,0.6,0.26]", (0.6, 0.26, 0.73, 0.54)),
        ("1 2 3 4 5", None),
        ("[0.6, 0.26, 0.73]", None),
        ("[0.6, nan, 0.73, inf]", None),
        ("", None),
    ],
)
def test_a_box_is_read_to_its_last_digit(text, expected):
    assert parse_box(text) == expected


def test_text_is_one_line_whatever_its_white_space():
    assert parse_text(" a\u2028small\x0b star\n") == "a small star"


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("The Book.", "book", True),
        ("1,000", "1000", True),
        ("1,000,000", "1000000", True),
        ("1,00", "100", False),
        ("$5", "5", True),
        ("t-shirt", "T shirt", True),
        ("two", "2", True),
        ("A", "a", True),
        ("don't", "dont", True),
        ("?", "?", True),
        ("?", "!", False),
        ("A", "the", False),
        ("-5", "5", False),
        ("3.5", "35", False),
        (".5", "5", False),
        ("hip", "whippet", False),
        ("", "", False),
    ],
)
def test_exact_match_forgives_form_and_nothing_else(one, other, equal):
    assert exact_match(one, [other]) == float(equal)
    assert normalise(normalise(one)) == normalise(one)


def test_vqa_soft_leaves_one_reference_out():
    references = ["red"] * 2 + ["blue"] * 8
    assert vqa_soft("blue", references) == 1.0
    # Leaving out a "red" (2 of 10) one other agrees, leaving out a "blue" (8 of 10) two do.
    assert vqa_soft("red", references) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_soft("green", references) == 0.0


def test_vqa_soft_is_exact_match_where_three_others_cannot_agree():
    assert vqa_soft("Red.", ["red"]) == 1.0
    assert vqa_soft("blue", ["red", "blue", "green"]) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (1, 1, 2, 2), 0.0),
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
        ((1, 1, 1, 3), (1, 1, 1, 3), 1.0),
        ((1, 1, 1, 3), (1, 1, 1, 2), 0.0),
    ],
)
def test_intersection_over_union_of_known_boxes(one, other, expected):
    assert intersection_over_union(one, other) == pytest.approx(expected)
    assert intersection_over_union(other, one) == pytest.approx(expected)


def test_an_iou_of_just_one_half_is_a_miss_as_in_the_published_code():
    assert ANSWER_METRICS["iou_at_half"]((0, 0, 1, 1), [(0, 0, 1, 2)]) == 0.0
    assert ANSWER_METRICS["iou_at_half"]((0, 0, 1, 1.01), [(0, 0, 1, 2)]) == 1.0


def test_a_caption_equal_to_any_reference_is_worth_1_whatever_its_length():
    references = ["star", "a red star", "a small red star stands in the corner"]
    for reference in references:
        assert ngram_f1(reference, references) == 1.0


def test_ngram_f1_stays_between_0_and_1_and_rewards_order():
    reference = ["a small red star in the corner"]
    close, shuffled = "a small red star in the middle", "corner the in star red small a"
    values = [ngram_f1(text, reference) for text in (close, shuffled, "star star star star", "blue")]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[0] > values[1] > values[2] > values[3] == 0.0


def test_a_prompt_is_filled_once_and_other_braces_stay():
    example = Example("1", "What is {choices} in {x}?", "A", choices=("red", "{text}"))
    prompt = '{text}\n{choices}\n{"y": 1} {}'
    assert build(Task, {**TASK, "prompt": prompt}, "task.vqav2").prompt == prompt
    assert render(prompt, example) == 'What is {choices} in {x}?\nA. red\nB. {text}\n{"y": 1} {}'


def test_settings_and_rendering_know_the_same_placeholders():
    example = Example("1", "a", "A", choices=("b",))
    for name in PLACEHOLDERS:
        assert render(f"{{{name}}}", example) != f"{{{name}}}"
    with pytest.raises(ConfigError, match="unknown placeholder '{y}'"):
        build(Task, {**TASK, "prompt": "{text} {y}"}, "task.vqav2")


def test_a_prompt_that_wants_choices_refuses_a_question_without(tmp_path):
    write_examples(tmp_path / "test.jsonl", [Example("7", "Which?", "A")])
    with pytest.raises(UserError, match="question 7 has none"):
        read_prompts(tmp_path / "test.jsonl", "{text} {choices}")


def test_a_question_file_without_questions_is_refused(tmp_path):
    write_examples(tmp_path / "test.jsonl", [])
    with pytest.raises(UserError, match="holds no question"):
        read_prompts(tmp_path / "test.jsonl", "{text}")


def test_a_task_is_built_from_its_config_and_says_how_it_is_scored():
    task = build(Task, {**TASK, "data": {"generator": "vqav2"}}, "task.vqav2")
    assert task.scoring() == Scoring("vqav2", "text", "exact_match")


def test_all_mistakes_in_a_task_are_said_at_once_with_the_choices():
    wrong = {"prompt": "{question}", "max_new_tokens": 0, "parse": "txt", "metric": "exact_match"}
    with pytest.raises(ConfigError) as caught:
        build(Task, {**TASK, **wrong}, "task.vqav2")
    message = str(caught.value)
    for part in (
        "'{question}'",
        "must hold {text}",
        "max_new_tokens must be at least 1",
        "did you mean 'text'",
    ):
        assert part in message
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Scoring, {"task": "rec", "parse": "text", "metric": "iou_at_half"}, "go together"),
        (Scoring, {"task": "rec", "parse": "box", "metric": "exact_match"}, "go together"),
        (Scoring, {"task": "rec", "parse": "text", "metric": "f1_of_yes"}, "goes with parse=yes_no"),
        (Task, {**TASK, "general": True}, "general or seen, not both"),
        (Generation, {**GENERATION, "batch_size": 0}, "batch_size must be at least 1"),
        (Generation, {**GENERATION, "prompt": "{txt}"}, "did you mean 'text'"),
        (Bootstrap, {"draws": 0, "seed": -1}, "draws"),
        (Logger, {"name": "wandbb"}, "did you mean 'wandb'"),
        (Logger, {"mode": "of"}, "unknown mode"),
        (Task, {**TASK, "name": "VQA v2"}, "file name"),
    ],
)
def test_settings_that_mean_nothing_are_refused(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        build(cls, values, "here")
