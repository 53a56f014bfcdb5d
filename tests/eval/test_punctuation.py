"""Punctuation of every script is worth what the ASCII mark is worth that it stands for, and nothing else is touched.

Needs nothing.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.answers import exact_match, ngram_f1, normalise, normalise_vqa, vqa_soft
from eval.metrics.caption_tokens import tokenize
from eval.metrics.official import OFFICIAL_METRICS
from eval.parse import PARSERS, parse_box, parse_letter, parse_number, parse_table, parse_text, parse_yes_no
from eval.punctuation import even_out_marks, separate_other_marks
from robustmerge.stage.records import Example

ASSIGNED = [
    sign for sign in map(chr, range(128, sys.maxunicode)) if unicodedata.category(sign) not in ("Cn", "Co", "Cs")
]
MARKS = [sign for sign in ASSIGNED if unicodedata.category(sign).startswith("P")]
UNITS = "‰‱؉؊"
INVISIBLE = [sign for sign in ASSIGNED if unicodedata.category(sign) == "Cf"]
CHOICES = ("red", "dark-blue", "it's green")
# Every other way to type an ASCII character, but for dashes, which captions are split at.
TYPED = defaultdict(list)
for sign in ASSIGNED:
    if len(even_out_marks(sign)) == 1 and even_out_marks(sign).isascii() and sign not in "‒–—―":
        TYPED[even_out_marks(sign)].append(sign)

answers = st.one_of(
    st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=20),
    st.lists(
        st.sampled_from(
            ("B", "a dog", "red", "1,000", "3.5", "-5", "yes", "don't", "The answer is ", *"()[].,;:!?-'\" ")
        ),
        max_size=6,
    ).map("".join),
    st.tuples(*[st.sampled_from(("0.25", "0.5", "1"))] * 4).map(lambda box: f"[{', '.join(box)}]"),
)


@st.composite
def typed_otherwise(draw, texts):
    """A text of ASCII, and the same text with other marks and invisible characters."""
    text = draw(texts)
    signs = [draw(st.sampled_from([sign, *TYPED[sign]])) + draw(st.sampled_from(("", "", *INVISIBLE))) for sign in text]
    return text, "".join(signs)


@pytest.mark.parametrize(
    ("mark", "typed"),
    [
        (".", "。｡．۔।։።․"),
        (",", "，、､،︐٬"),
        (";", "；؛;"),
        (":", "：︓"),
        ("?", "？؟¿⸮՞"),
        ("!", "！¡﹗"),
        ("'", "‘’‛′＇ʼʻʹ´՚׳"),
        ('"', "“”„‟‚‹›«»「」『』″＂״"),
        ("-", "‐‑‒–—―－﹣〜־"),
        ("(", "（【〔⁽"),
        ("]", "］〛"),
        (">", "》〉⟩＞"),
        ("_", "＿‿"),
        ("%", "％٪"),
        (" ", "\u00a0\u2003\u202f\u3000\u2028"),
        ("", "\u00ad\u200b\u200c\u200d\u2060\ufeff\u202e"),
    ],
)
def test_a_mark_is_the_ascii_mark_that_it_stands_for(mark, typed):
    assert [even_out_marks(sign) for sign in typed] == [mark] * len(typed)


def test_punctuation_of_every_script_is_evened_out_or_separates_but_for_units():
    evened = [separate_other_marks(even_out_marks(sign)) for sign in MARKS]
    assert {sign for sign, mark in zip(MARKS, evened, strict=True) if not mark.isascii()} == set(UNITS)


def test_what_is_no_punctuation_stays_as_it_is():
    changed = {
        sign
        for sign in ASSIGNED
        if unicodedata.is_normalized("NFC", sign)
        and unicodedata.category(sign)[0] not in "PZ"
        and separate_other_marks(even_out_marks(sign)) != sign
        and not unicodedata.decomposition(sign).startswith(("<wide>", "<small>"))
    }
    assert changed == {*INVISIBLE, *"\u00b4\u02b9\u02ba\u02bb\u02bc\u02bd\u02ee\u1fbd"}
    plain = "déjà vu, Ĳssel, 日本ー語, 한국어, हिन्दी, −5, 3 × 2½ = √5², €5, £5, 5 µm, 20 °C, 5 ‰, →, ☺"
    assert separate_other_marks(even_out_marks(plain)) == plain


@given(st.text(st.characters(max_codepoint=127)))
def test_a_text_of_ascii_is_left_alone(text):
    assert separate_other_marks(even_out_marks(text)) == even_out_marks(text) == text


@given(st.text())
def test_what_is_evened_out_once_is_so_however_it_was_composed(text):
    evened = even_out_marks(text)
    assert even_out_marks(evened) == evened == unicodedata.normalize("NFC", evened)
    assert even_out_marks(unicodedata.normalize("NFD", text)) == evened


@pytest.mark.parametrize("parser", sorted(set(PARSERS) - {"raw", "label"}))
@settings(deadline=None)
@given(texts=typed_otherwise(answers), choices=st.sampled_from(((), CHOICES)))
def test_an_answer_is_read_alike_whatever_its_marks_are_typed_with(parser, texts, choices):
    plain, typed = texts
    other = [choice.replace("-", "‑").replace("'", "’").replace(" ", "\u00a0") for choice in choices]
    assert PARSERS[parser](typed, choices) == PARSERS[parser](typed, other) == PARSERS[parser](plain, choices)


@settings(deadline=None)
@given(typed_otherwise(answers))
def test_an_answer_is_compared_alike_whatever_its_marks_are_typed_with(texts):
    plain, typed = texts
    assert normalise(typed) == normalise(plain)
    assert normalise_vqa(typed) == normalise_vqa(plain)
    assert tokenize([typed], "builtin") == tokenize([plain], "builtin")


@given(st.text(), st.sampled_from(sorted(set(MARKS) - set(UNITS))))
def test_no_mark_beyond_ascii_is_left_in_words_that_are_compared(text, mark):
    for normalised in (normalise(f"dog {mark} {text}"), normalise_vqa(f"dog {mark} {text}")):
        assert mark not in unicodedata.normalize("NFKC", normalised)


@pytest.mark.parametrize(
    "text", ["（B）", "B。", "B、 a dog", "Ｂ", "「B」", "答案 （B）", "The answer is：B", "B\u200b", "dark–blue。"]
)
def test_a_letter_is_read_in_the_dress_of_any_script(text):
    assert parse_letter(text, CHOICES) == parse_table(text, CHOICES) == "B"


def test_numbers_boxes_and_yes_are_read_in_any_script():
    assert parse_number("１，０００") == parse_table("１，０００。") == "1000"
    assert parse_number("－＄２．５") == parse_number("\u22122.5") == "-5/2"
    assert parse_number("٣٫٥") == "7/2"
    assert parse_table("７：２５") == "7:25"
    assert parse_box("［０．１，０．２，０．３，０．４］。") == (0.1, 0.2, 0.3, 0.4)
    assert parse_yes_no("Yes，there is no doubt") == parse_yes_no("«yes»") == "yes"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("t‑shirt", "t-shirt"),
        ("don＇t", "don't"),
        ("co\u00adoperate", "cooperate"),
        ("¿rojo؟", "rojo"),
        ("„rot“", "rot"),
        ("red、blue", "red, blue"),
        ("red · blue", "red blue"),
        ("dark\u00a0red…", "dark red"),
    ],
)
@pytest.mark.parametrize("metric", [exact_match, vqa_soft, ngram_f1])
def test_marks_alone_are_no_mistake(metric, one, other):
    assert metric(one, [other]) == metric(other, [one]) == 1.0


@pytest.mark.parametrize(
    ("one", "other"), [("§", "¶"), ("？", "！"), ("5 ‰", "5 ‱"), ("−5", "5"), ("é", "e"), ("·", "")]
)
@pytest.mark.parametrize("metric", [exact_match, vqa_soft])
def test_what_differs_in_more_than_its_marks_is_not_the_same(metric, one, other):
    assert metric(one, [other]) == 0.0
    assert metric(one, [one]) == 1.0


def test_an_invisible_text_is_no_answer():
    assert parse_text("\u200b \u00ad\ufeff") is None


@pytest.mark.parametrize("metric", sorted(set(OFFICIAL_METRICS) - {"official_rec"}))
def test_the_published_scorers_forgive_no_mark(metric):
    typed = "“B”" if metric == "official_substring" else "B。"
    assert OFFICIAL_METRICS[metric](typed, Example("1", "?", '"B"', choices=CHOICES)) == 0.0
