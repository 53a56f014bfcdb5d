"""Words that a tokenizer spells letter by letter: all that a small base does not know, none of a large vocabulary's."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ext.small.tokenizer import build_tokenizer
from llava_ext.spelling import count_pieces, describe_spelled, list_spelled

KNOWN = ("red", "star", "horse", "the")
TOKENIZER = build_tokenizer([f"What {word}" for word in KNOWN], 600)
words = st.one_of(st.sampled_from(KNOWN), st.text("abcdefghijklmnopqrstuvwxyzéжका", min_size=1, max_size=9))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(words, max_size=4).map(" ".join), max_size=4))
def test_the_words_that_are_spelled_are_the_longer_ones_that_the_tokenizer_does_not_know(answers):
    pieces = count_pieces(TOKENIZER, answers)
    assert {word for word, count in pieces.items() if count == 1 < len(word)} <= set(KNOWN)
    assert set(list_spelled(pieces)) == {word for word in pieces if word not in KNOWN and len(word.encode()) > 3}


def test_a_task_is_told_with_its_commonest_words_and_their_pieces():
    answers = ["the giraffe", "a giraffe!", "Giraffe, horse", "zebra", "zèbre", "red star"]
    assert describe_spelled("zoo", count_pieces(TOKENIZER, answers)) == (
        "zoo: 4 of 9 words of the answers are spelled in pieces by this base's tokenizer "
        "(giraffe: 7 pieces, Giraffe: 7 pieces, zebra: 5 pieces, ...); a small base learns such words badly"
    )


def test_numbers_boxes_and_marks_are_no_words():
    assert count_pieces(TOKENIZER, ["[0.25, 0.5, 1234567, 1e9]", "123456", "?!...", "", "₹ — …"]) == {"e": 1}


def test_nothing_is_said_of_words_that_are_whole_short_or_in_larger_pieces():
    assert describe_spelled("shapes", count_pieces(TOKENIZER, ["the red horse", "owl", "7"])) == ""
    assert describe_spelled("ocrvqa", {"Gonzalez": 4, "Dlobik": 4, "photosynthesis": 5}) == ""
    assert describe_spelled("rec", {}) == ""
