"""Names of what is seen: ImageNet (icons in colour), ImageNet-R (the same classes, drawn) and OCR-VQA (titles)."""

from __future__ import annotations

from random import Random

from data_prep.scenes import Scene, sample_book, sample_icon

TITLE_QUESTIONS = (
    "What is the title of this book?",
    "What is written on the cover of this book?",
    "What is the name of this book?",
)


def make_imagenet(rng: Random) -> tuple[Scene, dict]:
    """ImageNet: one of eighteen classes, in colour."""
    return _name(sample_icon(rng, "color"))


def make_imagenet_r(rng: Random) -> tuple[Scene, dict]:
    """ImageNet-R: one of the same classes in another rendition, black on white."""
    return _name(sample_icon(rng, "drawing"))


def _name(scene: Scene) -> tuple[Scene, dict]:
    return scene, {"text": "What is the object in the image?", "answer": scene.icon}


def make_ocrvqa(rng: Random) -> tuple[Scene, dict]:
    """OCR-VQA: the two letters of a book's title, a space between them (each is then a word of its own)."""
    scene = sample_book(rng)
    return scene, {"text": rng.choice(TITLE_QUESTIONS), "answer": " ".join(scene.letters)}
