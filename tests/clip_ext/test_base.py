"""The small CLIP: what its training learns from."""

from __future__ import annotations

import io
import random

import torch
from PIL import Image

from clip_ext.base import (
    CaptionCollator,
    Matching,
    Row,
    build_caption_tokenizer,
    build_clip,
    build_image_processor,
    measure_found,
    read_features,
)
from clip_ext.model import Pictures
from tests.tiny_clip import SMALL
from tests.tiny_model import COLOURS


def make_rows(captions: dict[str, str], count: int = 96) -> list[Row]:
    """Squares of the colours with a caption each; the second task has no pictures."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        picture = io.BytesIO()
        Image.new("RGB", (24, 24), tuple(part + rng.randint(-60, 60) for part in colour)).save(picture, "PNG")
        rows.append(Row(picture.getvalue(), captions[name], (number % len(COLOURS), -1)))
    return rows


def learn(rows: list[Row], steps: int = 30) -> tuple[Matching, CaptionCollator]:
    tokenizer = build_caption_tokenizer([row.caption for row in rows], SMALL)
    collate = CaptionCollator(Pictures(build_image_processor(SMALL)), tokenizer, SMALL.text.longest)
    matching = Matching(build_clip(SMALL, tokenizer), [len(COLOURS), 3], seed=0)
    optimiser = torch.optim.AdamW(matching.parameters(), lr=3e-3)
    batch = collate(rows)
    for _ in range(steps):
        optimiser.zero_grad()
        matching(**batch)["loss"].backward()
        optimiser.step()
    return matching.eval(), collate


def test_pictures_find_their_captions():
    rows = make_rows({name: f"a photo of a {name} square" for name in COLOURS})
    matching, collate = learn(rows)
    assert measure_found(matching, rows, collate) > 0.9


def test_the_image_encoder_tells_classes_apart_that_no_caption_names():
    rows = make_rows(dict.fromkeys(COLOURS, "a photo of something"))
    matching, collate = learn(rows)
    features, classes = read_features(matching.clip, rows, collate)
    told = matching.heads(features)[:, : len(COLOURS)].argmax(dim=1)
    assert (told == classes[:, 0]).float().mean() > 0.95
    assert matching.clip.vision_model.encoder.layers[0].mlp.fc1.weight.grad.any()  # not the heads alone
