"""The smallest real CLIP and the smallest task of classes, shared by the tests that need them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from clip_ext.base import build_caption_tokenizer, build_clip, build_image_processor, save_clip
from clip_ext.model import Pictures
from clip_ext.settings import ClipBase, Text
from llava_ext.settings import Peft, Vision
from robustmerge.stage.records import Example, write_examples
from tests.tiny_model import COLOURS

PROMPT = "a {label} square\na picture of a {label} thing"
SMALL = ClipBase(
    vision=Vision(layers=2, width=32, mlp=64, heads=2, image_size=24, patch_size=12),
    text=Text(layers=1, width=32, mlp=64, heads=2, longest=77),
    width=16,
    vocabulary=400,
)
PEFT = Peft(r=2, alpha=2, dropout=0.0, targets=r"vision_model\..*\.(q_proj|v_proj)", modules_to_save=())


def write_clip(folder: Path) -> Path:
    """A random CLIP with its tokenizer and image processor; writes about 200 kB."""
    captions = [line.replace("{label}", colour) for line in PROMPT.splitlines() for colour in COLOURS]
    tokenizer = build_caption_tokenizer(captions, SMALL)
    save_clip(folder, build_clip(SMALL, tokenizer), tokenizer, Pictures(build_image_processor(SMALL)))
    return folder


def write_class_task(folder: Path, count: int = 24, colours: tuple[str, ...] = tuple(COLOURS), seed: int = 0) -> Path:
    """A task's folder with train, val and test: coloured squares, some of them wide, and the colours as classes."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(list(colours)))
    for split in ("train", "val", "test"):
        examples = []
        for index in range(count):
            colour, size = rng.choice(colours), rng.choice(((24, 24), (24, 24), (30, 20)))
            name = f"images/{split}-{index}.png"
            Image.new("RGB", size, tuple(part + rng.randint(-9, 9) for part in COLOURS[colour])).save(folder / name)
            examples.append(Example(f"{split}-{index}", "Which colour is it?", colour, image=name))
        write_examples(folder / f"{split}.jsonl", examples)
    return folder
