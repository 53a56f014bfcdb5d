"""Laws of the corrected parsers and metrics, and what TabMWP's parser and the VQA evaluation take for the same.

Needs nothing.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eval.metrics.answers import (
    ANSWER_METRICS,
    ARTICLES,
    best_iou,
    exact_match,
    intersection_over_union,
    normalise_vqa,
    vqa_soft,
)
from eval.parse import PARSERS, parse_box, parse_letter, parse_raw, parse_table
from eval.punctuation import even_out_marks
from eval.settings import ANSWER_NAMES, PARSER_NAMES

CHOICES = ("red", "dark blue", "green")
words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8).filter(lambda word: word not in ARTICLES)
visible = st.text().filter(lambda text: even_out_marks(text).strip())
corners = st.tuples(*[st.integers(0, 100).map(lambda whole: f"{whole / 100:.2f}")] * 4)
# By parser: answers that can be right.
ANSWERS = {
    "box": corners.map(lambda box: f"[{', '.join(box)}]"),
    "label": st.sampled_from(("sea or lake", "7", "Audi A5 2012")),
    "letter": st.sampled_from("ABC"),
    "number": st.one_of(
        st.integers().map(str), st.fractions(max_denominator=99).map(str), st.decimals(-999, 999, places=2).map(str)
    ),
    "table": st.sampled_from((*CHOICES, *"ABC")),
    "text": visible,
    "yes_no": st.sampled_from(("yes", "No.", "Yes, it is a star", "no, it is red")),
}
ALONE = (("box", "iou_at_half"), ("label", "top_1"))  # these parsers and metrics go with each other only
PAIRS = [
    (parser, metric)
    for parser in ANSWERS
    for metric in ANSWER_NAMES
    if all((parser == one) == (metric == other) for one, other in ALONE)
]


def worth(parser: str, metric: str, text: str, references: list[str], choices=CHOICES) -> float:
    """As the score stage does it."""
    answer = PARSERS[parser](text, choices)
    accepted = [PARSERS[parser](reference, choices) for reference in references]
    assert None not in accepted
    return ANSWER_METRICS[metric](answer, accepted) if text.strip() and answer is not None else 0.0


def test_every_parser_but_the_published_scorers_has_answers_here():
    assert {*ANSWERS, "raw"} == set(PARSER_NAMES)


@pytest.mark.parametrize(("parser", "metric"), PAIRS)
@settings(deadline=None)
@given(data=st.data(), count=st.sampled_from((1, 3, 10)), blank=st.sampled_from(("", " \n", "\u2028")))
def test_a_perfect_answer_is_worth_1_an_empty_one_0_and_any_other_between(parser, metric, data, count, blank):
    right, other = data.draw(ANSWERS[parser]), data.draw(st.one_of(ANSWERS[parser], st.text()))
    assert worth(parser, metric, right, [right] * count) == 1.0
    assert worth(parser, metric, blank, [right] * count) == 0.0
    assert 0.0 <= worth(parser, metric, other, [right] * count) <= 1.0


@settings(deadline=None)
@given(right=visible, count=st.sampled_from((1, 10)))
def test_a_table_answer_without_choices_is_never_unreadable(right, count):
    assert worth("table", "exact_match", right, [right] * count, choices=()) == 1.0
    assert worth("table", "exact_match", " ", [right] * count, choices=()) == 0.0


@settings(deadline=None)
@given(labels=st.lists(words, min_size=2, max_size=5, unique=True))
def test_an_answer_that_lists_several_classes_is_wrong(labels):
    for joined in (", ".join(labels), " ".join(labels), "\n".join(labels)):
        assert worth("text", "exact_match", joined, labels[:1]) == 0.0


@settings(deadline=None)
@given(text=st.text())
def test_the_published_scorers_get_the_text_as_it_is(text):
    assert parse_raw(text, CHOICES) == text


@settings(deadline=None)
@given(letter=st.sampled_from("ABCabc"), dress=st.sampled_from(("{}", "{})", "({})", "{}.", "The answer is {}")))
def test_a_letter_counts_in_any_dress_where_there_are_choices(letter, dress):
    for parse in (parse_letter, parse_table):
        assert parse(dress.format(letter), CHOICES) == letter.upper()


@settings(deadline=None)
@given(
    box=corners,
    before=st.sampled_from(("", "The box is ", "2 dogs: ")),
    brackets=st.sampled_from(("[]", "()", "{}", "<>")),
    after=st.sampled_from(("", ".", " as asked", " (1 of 3)")),
)
def test_a_box_is_the_same_whatever_stands_around_it_and_whichever_corner_comes_first(box, before, brackets, after):
    x1, y1, x2, y2 = map(float, box)
    expected = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    for written in (box, (*box[2:], *box[:2])):
        assert parse_box(f"{before}{brackets[0]}{', '.join(written)}{brackets[1]}{after}") == expected


@settings(deadline=None)
@given(one=corners, other=corners)
def test_the_best_iou_is_between_0_and_1_symmetric_and_0_where_there_is_no_box(one, other):
    one, other = (parse_box(",".join(box)) for box in (one, other))
    value = best_iou(one, [other])
    assert 0.0 <= value <= 1.0 and value == pytest.approx(best_iou(other, [one]))
    assert best_iou(None, [other]) == 0.0
    assert best_iou(one, [other, one]) == 1.0
    assert intersection_over_union(one, other) == value


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("$1,234.50", "1234.5", True),
        ("1,000", "1000", True),
        ("12.", "12", True),
        ("$5", "5 dollars", True),
        ("50%", "50", True),
        ("-3/2", "\u22121.5", True),
        ("1/3", "0.333", True),
        ("1/3", "0.33", False),
        ("$\\frac{16}{95}$", "16/95", True),
        ("three", "3", True),
        ("2 + 3 = 5", "5", True),
        ("The answer is $5. It costs $2 more.", "5", True),
        ("The answer is Tuesday.", "Tuesday", True),
        ("07:25 PM", "7:25 P.M.", True),
        ("The answer is 7:25 P.M.", "7:25 P.M.", True),
        ("7:25 A.M.", "7:25 P.M.", False),
        ("7:25 P.M.", "25", False),
        ("5 million", "5", False),
        ("yes", "no", False),
    ],
)
def test_tabmwp_compares_what_an_answer_without_choices_means(one, other, same):
    assert (parse_table(one) == parse_table(other)) == same


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("no.", ("yes", "no"), "B"),
        ("The answer is (B) no.", ("yes", "no"), "B"),
        ("There is a surplus.", ("shortage", "surplus"), "B"),
        ("$5.00", ("5", "6"), "A"),
        ("7:25 pm", ("7:25 P.M.", "8:25 P.M."), "A"),
        ("A", ("B", "A"), "B"),
        ("yes or no", ("yes", "no"), None),
        ("maybe", ("yes", "no"), None),
        ("Z", ("yes", "no"), None),
        ("?", ("=", "yes"), None),
    ],
)
def test_a_choice_is_meant_by_its_letter_text_number_or_most_words_and_never_guessed(text, choices, expected):
    assert parse_table(text, choices) == expected


@settings(deadline=None)
@given(choices=st.lists(words, min_size=2, max_size=6, unique=True), index=st.integers(0, 5))
def test_the_text_of_a_choice_is_that_choice_however_it_is_capitalised(choices, index):
    assume(index < len(choices))
    for text in (choices[index], choices[index].upper(), f"The answer is {choices[index]}."):
        assert parse_table(text, choices) == "ABCDEF"[index]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Dog.", "dog", True),
        ("two", "2", True),
        ("none", "0", True),
        ("dont know", "Don\u2019t know", True),
        ("couldnt've", "couldn'tve", True),
        ("dogs", "dog's", False),
        ("its", "it's", False),
        ("1,000", "1000", True),
        ("t-shirt", "t shirt", True),
        ("red, blue", "red blue", True),
        ("u.s.", "US", True),
        ("2.5", "25", False),
        ("10%", "10", False),
        ("A", "the", False),
        ("?", "!", False),
    ],
)
def test_answers_are_the_same_where_the_vqa_evaluation_takes_them_for_the_same(one, other, same):
    assert (normalise_vqa(one) == normalise_vqa(other)) == same
    assert vqa_soft(one, [other] * 10) == vqa_soft(one, [other]) == float(same)


@pytest.mark.parametrize(
    ("one", "other"),
    [("0.", "0"), ("three", "3"), ("The Book.", "the book"), ("Mystery Thriller", "mystery, thriller"), ("(B)", "b")],
)
def test_form_alone_is_no_mistake_in_an_exact_match(one, other):
    assert exact_match(one, [other]) == exact_match(other, [one]) == 1.0
