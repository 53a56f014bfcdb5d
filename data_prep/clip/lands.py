"""The drawn EuroSAT: the use of the land from a satellite, the same everywhere, at ten metres a pixel."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageFilter

from data_prep.clip.canvas import (
    FINE,
    OUTSIDE,
    Canvas,
    Colour,
    Look,
    Pose,
    any_colour,
    box,
    clouds,
    disc,
    jitter,
    mix,
    spoil,
)
from data_prep.clip.ground import GRASS, Draw, bend, draw_ground, draw_houses, draw_road


def _fields(rng: Random, canvas: Canvas, colours: tuple[Colour, ...], step: float, gap: float) -> None:
    """Patches in rows, each of a colour."""
    y = -OUTSIDE
    while y < OUTSIDE:
        high, x = step * rng.uniform(0.6, 1.4), -OUTSIDE
        while x < OUTSIDE:
            wide = step * rng.uniform(0.6, 1.6)
            canvas.polygon(jitter(rng, rng.choice(colours), 16), box(x, y, x + wide - gap, y + high - gap))
            x += wide
        y += high


def _draw_annual_crop(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((150, 125, 90), (125, 135, 80), (175, 155, 110), (105, 95, 75)), 0.75, 0.03)


def _draw_permanent_crop(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((125, 130, 85), (150, 130, 95), (110, 115, 80)), 0.65, 0.03)
    step, row = rng.uniform(0.14, 0.2), -OUTSIDE
    while row < OUTSIDE:
        canvas.line(jitter(rng, (70, 90, 55)), 0.05, [(-OUTSIDE, row), (OUTSIDE, row)])
        row += step


def _draw_pasture(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (110, 140, 80), (95, 125, 75))
    for _ in range(rng.randint(1, 4)):
        at = rng.uniform(-1, 1)
        canvas.line((70, 95, 60), 0.05, [(-OUTSIDE, at), (OUTSIDE, at + rng.uniform(-0.5, 0.5))])


def _draw_brushland(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (130, 130, 95), (95, 110, 75))
    canvas.cover(jitter(rng, (75, 90, 60)), clouds(rng, 12, 150, 210))


def _draw_forest(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (45, 75, 55), (55, 90, 60))
    canvas.cover(jitter(rng, (35, 60, 48), 10), clouds(rng, 14, 140, 220))


def _draw_road(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((125, 130, 90), (150, 130, 100), (95, 115, 75)), 0.9, 0.02)
    draw_road(
        canvas,
        jitter(rng, (175, 170, 170)),
        rng.uniform(0.1, 0.16),
        bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0, 0.2)),
        False,
    )
    if rng.random() < 0.4:
        canvas.line(jitter(rng, (175, 170, 170)), 0.08, [(rng.uniform(-0.5, 0.5), -OUTSIDE), (0, 0)])


def _draw_stream(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((105, 125, 80), (130, 125, 95), (75, 100, 65)), 0.9, 0.02)
    canvas.line(
        jitter(rng, (65, 90, 95)), rng.uniform(0.14, 0.4), bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.35))
    )


def _draw_sea(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice(((35, 60, 95), (45, 80, 95), (50, 65, 75))))
    if rng.random() < 0.25:
        canvas.polygon(jitter(rng, (110, 120, 85)), disc(0, 1.7, 1.4, 1.0))


def _draw_residential(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (125, 125, 110))
    draw_houses(rng, canvas, rng.uniform(0.18, 0.26), 0.85)
    for _ in range(rng.randint(1, 3)):
        at = rng.uniform(-0.8, 0.8)
        canvas.line((150, 148, 145), 0.07, [(-OUTSIDE, at), (OUTSIDE, at + rng.uniform(-0.3, 0.3))])


def _draw_industrial(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (140, 138, 132))
    for _ in range(rng.randint(7, 12)):
        x, y = rng.uniform(-1, 1), rng.uniform(-1, 1)
        wide, high = rng.uniform(0.15, 0.4), rng.uniform(0.1, 0.3)
        canvas.polygon(
            jitter(rng, rng.choice(((205, 205, 210), (150, 165, 190), (175, 110, 95))), 22),
            box(x - wide, y - high, x + wide, y + high),
        )


LANDS: dict[str, Draw] = {
    "annual crop land": _draw_annual_crop,
    "forest": _draw_forest,
    "brushland or shrubland": _draw_brushland,
    "highway or road": _draw_road,
    "industrial buildings": _draw_industrial,
    "pasture land": _draw_pasture,
    "permanent crop land": _draw_permanent_crop,
    "residential buildings": _draw_residential,
    "river": _draw_stream,
    "lake or sea": _draw_sea,
}


def draw_land(rng: Random, name: str, look: Look) -> Image.Image:
    """Land from a satellite: through haze and with few pixels, on the web sharp and clear."""
    canvas = Canvas(GRASS)
    canvas.pose = Pose(turn=rng.choice((0, 0.5)) if look.plain else rng.uniform(0, 2), unit=rng.uniform(20, 30))
    LANDS[name](rng, canvas)
    image = canvas.image.reduce(FINE)
    if not look.plain:
        coarse = image.reduce(2).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5)))
        haze = Image.new("RGB", coarse.size, mix((150, 170, 200), any_colour(rng, 90, 200), 0.4))
        image = Image.blend(coarse, haze, rng.uniform(0.1, 0.5)).resize(image.size, Image.Resampling.BICUBIC)
    return spoil(rng, image, look)
