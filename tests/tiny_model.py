"""The smallest real LLaVA and the smallest task, shared by the tests that need a model."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from PIL import Image

from llava_ext.pace import MEASURED
from llava_ext.settings import LOSSES, Language, Pretraining, Vision
from llava_ext.small.build import build_model, build_processor, save_base
from llava_ext.small.tokenizer import build_tokenizer
from robustmerge.stage.records import Example, write_examples

TEMPLATE = "vicuna_v1_short"
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
TEXTS = ("What colour is it?", "Name the colour of the square in this picture.", "Colour?")
SMALL = Pretraining(
    vision=Vision(layers=1, width=32, mlp=64, heads=2, image_size=24, patch_size=12),
    language=Language(layers=2, width=40, mlp=64, heads=2),
    vocabulary=400,
)


def write_base(folder: Path, seed: int = 0) -> Path:
    """A random base model with its processor; writes about 200 kB."""
    lines = [*TEXTS, "USER: it ASSISTANT: red", *(f" {colour}" for colour in COLOURS), "yes no maybe a word"]
    tokenizer = build_tokenizer(lines, SMALL.vocabulary)
    settings = dataclasses.replace(SMALL, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_base(folder, build_model(settings, tokenizer), build_processor(settings.vision, tokenizer))
    return folder


def draw_examples(folder: Path, count: int, seed: int = 0) -> list[Example]:
    """Questions about coloured squares; every fourth has no picture, some pictures are not square."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    examples = []
    for index in range(count):
        colour = rng.choice(list(COLOURS))
        size = rng.choice(((24, 24), (24, 24), (30, 20)))
        name = f"images/{seed}-{index}.png"
        Image.new("RGB", size, COLOURS[colour]).save(folder / name)
        text = rng.choice(TEXTS)
        examples.append(Example(f"q{seed}-{index}", text, colour, image=None if index % 4 == 3 else name))
    return examples


def write_task(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """A task's folder with train, val and test."""
    folder.mkdir(parents=True, exist_ok=True)
    for offset, split in enumerate(("train", "val", "test")):
        write_examples(folder / f"{split}.jsonl", draw_examples(folder, count, seed * 10 + offset))
    return folder


def read_losses(folder: Path) -> list[dict]:
    """What is the same in every run of a training: step, loss, learning rate."""
    lines = map(json.loads, (folder / LOSSES).read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]
