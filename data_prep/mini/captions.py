"""Captions with several references a picture: VizWiz, Flickr30k and Screen2Words.

The three families share their words and differ in style. VizWiz and Flickr30k also share their prompt, as in the
paper; what tells them apart is the picture (bad photo, clear photo), so one model can satisfy both.
"""

from __future__ import annotations

import re
from random import Random

from data_prep.scenes import QUALITIES, SIZES, Scene, sample_object

REFERENCES = 4

VIZWIZ = (
    "a {quality} photo of a {size} {colour} {shape} in the {place} part",
    "a {quality} picture of a {colour} {shape} in the {place} part",
    "a {quality} image showing a {colour} {shape} made of {material}",
    "a {quality} photo of a {colour} {material} {shape} at the {place}",
    "a {size} {colour} {shape} in a {quality} photo",
)
FLICKR30K = (
    "a {size} {colour} {material} {shape} in the {place} part",
    "a {size} {colour} {shape} made of {material} at the {place}",
    "a {colour} {shape} of {material} sits in the {place} part",
    "one {size} {colour} {shape} stands in the {place} part",
    "a {material} {shape} in {colour} at the {place}",
)
SCREEN2WORDS = (
    "a screen with a {size} {colour} {shape} in the {place} part",
    "a screen showing a {colour} {shape} at the {place}",
    "a page with a {size} {colour} {shape} made of {material}",
    "a screen of a {colour} {material} {shape} in the {place} part",
    "a phone page showing one {colour} {shape}",
)


def _caption(rng: Random, scene: Scene, styles: tuple[str, ...]) -> dict:
    """References as several people would give them; the first (half the time the commonest) is trained on."""
    first = styles[0] if rng.random() < 0.5 else rng.choice(styles[1:])
    others = rng.sample([style for style in styles if style != first], REFERENCES - 1)
    words = {name: getattr(scene, name) for name in ("quality", "size", "colour", "material", "shape", "place")}
    references = tuple(_articles(style.format(**words)) for style in (first, *others))
    return {"answer": references[0], "references": references}


def _articles(caption: str) -> str:
    return re.sub(r"\ba (?=orange)", "an ", caption)


def make_vizwiz(rng: Random) -> tuple[Scene, dict]:
    """VizWiz: the photo is blurry, dark or too bright, and the caption says so."""
    scene = sample_object(rng, sizes=("medium", "large"), qualities=QUALITIES[1:])
    return scene, {"text": "What is happening in the image?", **_caption(rng, scene, VIZWIZ)}


def make_flickr30k(rng: Random) -> tuple[Scene, dict]:
    """Flickr30k: a clear photo."""
    scene = sample_object(rng, sizes=tuple(SIZES))
    return scene, {"text": "What is happening in the image?", **_caption(rng, scene, FLICKR30K)}


def make_screen2words(rng: Random) -> tuple[Scene, dict]:
    """Screen2Words: a phone's screen."""
    scene = sample_object(rng, kind="screen")
    return scene, {"text": "What is shown on the phone screen?", **_caption(rng, scene, SCREEN2WORDS)}
