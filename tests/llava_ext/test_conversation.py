"""Conversation templates, labels, padding and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from llava_ext.conversation import IGNORE, build_segments, encode, render
from llava_ext.data import Collator, Row, encode_prompt, load_reader, pad, training_order
from llava_ext.pixels import PixelReader, read_training_picture
from llava_ext.small.tokenizer import build_tokenizer
from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError
from tests.tiny_model import TEMPLATE, draw_examples, write_base

TOKENIZER = build_tokenizer(["What colour is it?", "USER: red ASSISTANT: dark blue"], 600)
TEXT = st.text(max_size=20)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


def test_vicuna_v1_is_the_published_string():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    assert render("vicuna_v1", [("Why?", None)], True) == f"{system} USER: <image>\nWhy? ASSISTANT:"
    assert render("vicuna_v1", [("Why?", "So.")], False) == f"{system} USER: Why? ASSISTANT: So.</s>"
    assert render(TEMPLATE, [("a", "b"), ("c", "d")], True) == (
        "USER: <image>\na ASSISTANT: b</s>USER: c ASSISTANT: d</s>"
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.booleans())
def test_labels_cover_exactly_the_answers_and_their_end_tokens(turns, image):
    encoded = encode(TOKENIZER, build_segments(TEMPLATE, turns, image), [3] * 4)
    assert all(label in (IGNORE, token) for token, label in zip(encoded.ids, encoded.labels, strict=True))
    learned = [label for label in encoded.labels if label != IGNORE]
    expected = "".join(f" {answer}</s>" for _, answer in turns)
    assert TOKENIZER.decode(learned) == expected
    assert TOKENIZER.decode(encoded.ids) == "<s>" + render(TEMPLATE, turns, image).replace(
        "<image>", "<image>" * 4, image
    )


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_a_prompt_is_the_beginning_of_its_training_text(question, answer):
    prompt = encode(TOKENIZER, build_segments(TEMPLATE, [(question, None)], True), [3])
    whole = encode(TOKENIZER, build_segments(TEMPLATE, [(question, answer)], True), [3])
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert set(whole.labels[: len(prompt.ids)]) == {IGNORE}


def test_an_unknown_template_names_the_choices():
    with pytest.raises(UserError, match="vicuna_v1"):
        build_segments("vicuna", [("a", "b")], False)


def test_ids_and_pixels_are_those_of_the_processor(base, tmp_path):
    reader, processor = load_reader(base, TEMPLATE), AutoProcessor.from_pretrained(base)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    batch = processor(images=picture, text=render(TEMPLATE, [("What colour is it?", None)], True), return_tensors="pt")
    example = Example("q", "What colour is it?", "red", image="a.png")
    assert [reader.tokenizer.bos_token_id, *batch["input_ids"][0].tolist()] == encode_prompt(reader, example)
    assert torch.equal(batch["pixel_values"], reader.pixels([picture]))
    assert type(processor.image_processor).__name__ == "LlavaImageProcessorPil"


@pytest.mark.parametrize("size", [(24, 24), (40, 24), (24, 40), (7, 5), (100, 100)])
def test_pixels_of_the_model_s_size_equal_those_of_the_processor(base, size):
    reader = load_reader(base, TEMPLATE)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    expected = reader.pixels.processor([picture], return_tensors="pt")["pixel_values"]
    assert torch.allclose(reader.pixels([picture]), expected, atol=1e-6)
    assert expected.shape == (1, 3, 24, 24)


def test_a_wide_picture_is_padded_and_never_cropped(base):
    reader: PixelReader = load_reader(base, TEMPLATE).pixels
    picture = Image.new("RGB", (48, 24), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 4, 24))
    rows = reader([picture])[0].mean(0)  # the picture fills the middle half
    assert rows[12, 0] > rows[12, 12] and abs(float(rows[0, 12])) < 0.1


def test_padding_is_right_in_training_and_left_in_generation(base, tmp_path):
    assert pad([[1], [2, 3]], 0, "right").tolist() == [[1, 0], [2, 3]]
    assert pad([[1], [2, 3]], 0, "left").tolist() == [[0, 1], [2, 3]]
    reader = load_reader(base, TEMPLATE)
    examples = draw_examples(tmp_path, 4)
    rows = []
    for example in examples:
        ids, labels = reader.encode([(example.text, example.answer)], example.image is not None)
        rows.append(Row(ids, labels, tmp_path / example.image if example.image else None))
    batch = Collator(reader)(rows)
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    assert "pixel_values" not in Collator(reader)(rows[3:])
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORE).all())


def test_the_training_order_depends_on_seed_and_epoch_alone():
    assert training_order(10, 4, 6, seed=1)[:8] == training_order(10, 4, 2, seed=1)
    assert training_order(10, 4, 2, seed=1) != training_order(10, 4, 2, seed=2)
    first, second = training_order(10, 5, 4, seed=0)[:10], training_order(10, 5, 4, seed=0)[10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert len(training_order(3, 8, 2, seed=0)) == 16


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"cut\.png"):
        read_training_picture(tmp_path / "cut.png")
    with pytest.raises(UserError, match="a picture of the corpus"):
        read_training_picture(b"\x89PNG\r\n\x1a\n" + bytes(8))  # Pillow: SyntaxError
