"""Pictures with captions that leave a small CLIP half-taught, as the real one is.

CLIP ViT-B/32 reaches 80 % of its expert's accuracy on Cars before any training on it, 49 % on MNIST and 35 % on GTSRB
(`PUBLISHED`). These eight ratios say how much an expert has to change, and how much a merge can break. A task's ratio
sets two things here, both fixed by the paper and a seed and neither by a merged score:

- How many of its pictures are taken as the task takes them; the rest are clean and plain, as most of the web is. No
  handwritten digit is among them: digits are drawn strokes.
- How many of its classes captions name in such pictures. With n of N classes known and the others guessed among
  themselves, which is worth one class of N, the accuracy is (n + 1) / N; so n = ratio N - 1. The first n in an order
  that the seed draws (one order of names, so that the digits known in SVHN are among those known in MNIST) are named.
  Captions of the others name any one of the others. In plain pictures all classes are named: what the words mean is
  known, and an expert learns to see it in the pictures of its task.

One caption in five is vague ("a photo of a vehicle"), all have one of several wordings, and one picture in nine shows
something else: a shape, an icon, a book, marks.

Layout of the folder:

    train/, held_out/   Arrow datasets (`datasets.load_from_disk`), a row a picture: `image` (PNG bytes), `caption`, and
                        an int8 column per task, the number of its true class, -1 in pictures of another kind
    heads.json          number of classes of every task, in the order of the columns
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import NamedTuple

from data_prep.clip.canvas import PHOTO, WEB, Look
from data_prep.clip.tasks import LABEL_TASKS
from data_prep.mini.corpus import sample_scene, save_columns
from data_prep.mini.drawing import draw, encode
from data_prep.mini.scenes import Scene
from data_prep.mini.statements import with_article
from data_prep.parallel import map_in_order
from data_prep.settings import LABEL_PREFIX, CaptionCorpus
from robustmerge.stage.files import write_atomically

CHUNK = 256
VAGUE = 0.2  # how often a caption names no class
Captioned = tuple[bytes, str, tuple[int, ...]]  # PNG, caption, number of its class in each task or -1

# Accuracy of CLIP ViT-B/32 without training and of the expert, in per cent (tables 4 and 5 of the paper).
PUBLISHED = {
    "clip_cars": (59.7, 74.3),
    "clip_mnist": (48.5, 99.3),
    "clip_sun397": (62.3, 65.2),
    "clip_gtsrb": (32.6, 92.9),
    "clip_resisc45": (60.7, 88.7),
    "clip_dtd": (43.8, 58.4),
    "clip_eurosat": (45.5, 99.1),
    "clip_svhn": (31.4, 96.4),
}


class Wording(NamedTuple):
    """What captions call a picture of a task: by the name of its class ({a_label}: with its article), or vaguely."""

    named: tuple[str, ...]
    vague: tuple[str, ...]


WORDINGS = {
    "clip_cars": Wording(("{a_label}", "the {label}", "{a_label}, a type of vehicle"), ("a vehicle", "a car")),
    "clip_mnist": Wording(("the number {label}", "the digit {label}", "a written {label}"), ("a number", "a digit")),
    "clip_sun397": Wording(("{a_label}", "the {label}"), ("a place", "a scene")),
    "clip_gtsrb": Wording(("{a_label} traffic sign", "a traffic sign, {label}"), ("a traffic sign", "a sign")),
    "clip_resisc45": Wording(("{a_label} from above", "{a_label} seen from the air"), ("a place from above",)),
    "clip_dtd": Wording(("{a_label} texture", "{a_label} pattern", "something {label}"), ("a texture", "a pattern")),
    "clip_eurosat": Wording(("{label} from space", "land, {label}"), ("land from space", "the ground")),
    "clip_svhn": Wording(("the house number {label}", "{label} on a wall"), ("a house number", "a number on a wall")),
}
OPENINGS = {
    "clip_resisc45": ("an aerial photo of", "satellite imagery of"),
    "clip_eurosat": ("a satellite photo of", "satellite imagery of"),
}
ANY_OPENING = ("a photo of", "a picture of", "an image of", "this is", "a close-up of", "here is")


@cache
def known_classes(generator: str, seed: int) -> frozenset[str]:
    """The classes of a label task that captions name in pictures as the task takes them."""
    classes = LABEL_TASKS[generator].classes
    zero_shot, individual = PUBLISHED[generator]
    order = sorted(classes, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())
    return frozenset(order[: max(1, round(zero_shot / individual * len(classes)) - 1)])


def write_caption(rng: Random, generator: str, label: str, look: Look, seed: int) -> str:
    """A caption of a picture of a class."""
    known, wording = known_classes(generator, seed), WORDINGS[generator]
    if rng.random() < VAGUE:
        what = rng.choice(wording.vague)
    else:
        others = [name for name in LABEL_TASKS[generator].classes if name not in known]
        name = label if look.plain or label in known else rng.choice(others)
        what = rng.choice(wording.named).format(label=name, a_label=with_article(name))
    return _open(rng, what, OPENINGS.get(generator, ANY_OPENING))


def _open(rng: Random, what: str, openings: tuple[str, ...] = ANY_OPENING) -> str:
    return f"{rng.choice(openings)} {what}."


def describe(rng: Random, scene: Scene) -> str:
    """A caption of a picture of the mini benchmark."""
    colour = f"{scene.colour} " if scene.colour else ""
    if scene.kind == "icon":
        what = with_article(colour + scene.icon)
    elif scene.kind == "book":
        what = f"{with_article(colour + 'book')} with the letters {' '.join(scene.letters)}"
    elif scene.marks:
        marks = f"{scene.count('red')} red and {scene.count('blue')} blue marks"
        what = f"a table of {marks}" if scene.kind == "table" else marks
    else:
        thing = f"{scene.size} {colour}{scene.shape}"
        made = f" made of {scene.material}" if scene.material and rng.random() < 0.5 else ""
        where = f" in the {scene.place} part" if rng.random() < 0.5 else ""
        what = ("a screen with " if scene.kind == "screen" else "") + with_article(thing) + made + where
    if scene.rendition == "drawing":
        return _open(rng, what, ("a drawing of", "a sketch of"))
    return _open(rng, what) if scene.quality == "clear" else _open(rng, what, (f"a {scene.quality} photo of",))


def _draw_labelled(rng: Random, generator: str, seed: int) -> Captioned:
    zero_shot, individual = PUBLISHED[generator]
    look = PHOTO if rng.random() < zero_shot / individual else WEB
    label = rng.choice(LABEL_TASKS[generator].classes)
    number = LABEL_TASKS[generator].classes.index(label)
    numbers = tuple(number if one == generator else -1 for one in PUBLISHED)
    return (
        encode(LABEL_TASKS[generator].draw(rng, label, look)),
        write_caption(rng, generator, label, look, seed),
        numbers,
    )


def _draw_chunk(job: tuple[int, str, int, int, int]) -> list[Captioned]:
    """Draw the pictures start..stop of a part, the first `labelled` of which are in the manner of the tasks."""
    seed, part, labelled, start, stop = job
    generators, drawn = list(PUBLISHED), []
    for number in range(start, stop):
        rng = Random(f"captions/{seed}/{part}/{number}")
        if number < labelled:
            drawn.append(_draw_labelled(rng, generators[number % len(generators)], seed))
        else:
            scene = sample_scene(rng)
            drawn.append((encode(draw(scene)), describe(rng, scene), (-1,) * len(generators)))
    return drawn


def draw_captioned(settings: CaptionCorpus, part: str = "train") -> Iterator[Captioned]:
    """Pictures (PNG, 48 x 48) with their captions, the same for any number of processes. part: train or held_out."""
    total = settings.labelled + settings.others
    count, labelled = total, settings.labelled
    if part == "held_out":
        count, labelled = settings.held_out, settings.held_out * settings.labelled // total
    jobs = [(settings.seed, part, labelled, at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
    for chunk in map_in_order(_draw_chunk, jobs, settings.jobs):
        yield from chunk


def write_captions(folder: Path, settings: CaptionCorpus) -> dict[str, int]:
    """Draw the pictures with captions into a folder; returns the number of each of its parts."""
    counts = {}
    tasks = {name.removeprefix(LABEL_PREFIX): len(LABEL_TASKS[name].classes) for name in PUBLISHED}
    for part in ("train", "held_out"):
        images, captions, numbers = zip(*draw_captioned(settings, part), strict=True)
        columns = {"image": images, "caption": captions, **dict(zip(tasks, zip(*numbers, strict=True), strict=True))}
        save_columns(folder / part, columns, {"image": "bytes", "caption": "text", **dict.fromkeys(tasks, "int")})
        counts[part] = len(captions)
    write_atomically(folder / "heads.json", json.dumps(tasks, indent=1) + "\n")
    return counts
