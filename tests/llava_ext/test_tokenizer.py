"""The small tokenizer: exact round trips, whole words, stable bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llava_ext.small.tokenizer import build_tokenizer
from robustmerge.stage.settings import UserError

LINES = ["What colour is the star?", "A. red\nB. dark blue", "[ 6 , 10 ] [0.25,0.5]"]
TOKENIZER = build_tokenizer(LINES, 600)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_every_string_comes_back_exactly(text):
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["</s>", "<image>", "<s>", "<pad>", " star", "é", "\n", "a"])).map("".join))
def test_written_special_tokens_stay_text_and_come_back(text):
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(ids) == text


def test_every_word_of_the_corpus_is_one_token_at_a_line_s_start_and_inside():
    assert TOKENIZER.tokenize("What colour is the star?") == ["What", "Ġcolour", "Ġis", "Ġthe", "Ġstar", "?"]
    assert TOKENIZER.tokenize(" What") == ["ĠWhat"]
    assert len(TOKENIZER.tokenize("A. red\nB. dark blue")) == 8


def test_the_most_frequent_words_win_where_the_vocabulary_is_full():
    small = build_tokenizer(["often often often often", "seldom"], 4 + 256 + 2)
    assert small.tokenize(" often") == ["Ġoften"]
    assert len(small.tokenize("seldom")) == 6


def test_the_same_corpus_gives_the_same_bytes_and_loads_from_disk(tmp_path):
    for name, lines in (("a", LINES), ("b", list(reversed(LINES)))):
        build_tokenizer(lines, 600).save_pretrained(tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    text = "What 🙂 star"
    assert AutoTokenizer.from_pretrained(tmp_path / "a")(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_an_empty_corpus_is_refused():
    with pytest.raises(UserError, match="empty"):
        build_tokenizer(["", "\n"], 600)
