"""The drawn DTD: textures in two colours or more, told apart by their pattern."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin
from random import Random

from PIL import Image

from data_prep.clip.canvas import Canvas, Colour, Look, Pose, any_colour, box, clouds, disc, jitter, shade

EXTENT = 2.0  # to which a pattern goes on, in any direction of the frame

Draw = Callable[[Random, Canvas, Colour, float], None]  # random source, canvas, ink, distance of the pattern's parts


def _steps(distance: float) -> list[float]:
    """Places at a distance from each other, across the picture and beyond."""
    return [distance * step for step in range(-int(EXTENT / distance), int(EXTENT / distance) + 1)]


def _near(rng: Random, value: float, by: float) -> float:
    return value + rng.uniform(-by, by)


def _draw_lined(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for y in _steps(0.6 * step):
        canvas.line(ink, 0.12 * step, [(-EXTENT, y), (EXTENT, y)])


def _draw_banded(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for y in _steps(1.6 * step):
        canvas.polygon(jitter(rng, ink), box(-EXTENT, y, EXTENT, y + step * rng.uniform(0.5, 1.0)))


def _draw_chequered(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for row, y in enumerate(_steps(step)):
        for x in _steps(2 * step):
            left = x + step * (row % 2)
            canvas.polygon(ink, box(left, y, left + step, y + step))


def _draw_grid(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for at in _steps(step):
        canvas.line(ink, 0.2 * step, [(-EXTENT, at), (EXTENT, at)])
        canvas.line(ink, 0.2 * step, [(at, -EXTENT), (at, EXTENT)])


def _draw_crosshatched(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for at in _steps(0.7 * step):
        for side in (-1, 1):
            start = _near(rng, at, 0.15 * step)
            canvas.line(ink, 0.1 * step, [(-EXTENT, start - side * 1.2), (EXTENT, start + side * 1.2)])


def _draw_dotted(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for row, y in enumerate(_steps(step)):
        for x in _steps(step):
            canvas.polygon(ink, disc(x + step / 2 * (row % 2), y, 0.27 * step))


def _draw_bubbly(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for _ in range(int(14 / step)):
        x, y, radius = rng.uniform(-1.4, 1.4), rng.uniform(-1.4, 1.4), step * rng.uniform(0.15, 0.6)
        canvas.polygon(ink, disc(x, y, radius))
        canvas.polygon(shade(ink, 0.4), disc(x - 0.2 * radius, y - 0.2 * radius, 0.6 * radius))


def _draw_zigzagged(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for y in _steps(0.9 * step):
        path = [(x, y + (step / 2 if number % 2 else 0)) for number, x in enumerate(_steps(0.6 * step))]
        canvas.line(ink, 0.25 * step, path)


def _draw_wavy(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for y in _steps(0.9 * step):
        path = [(x, y + 0.28 * step * sin(x * pi / step)) for x in _steps(step / 5)]
        canvas.line(ink, 0.25 * step, path)


def _draw_honeycombed(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for row, y in enumerate(_steps(0.87 * step)):
        for x in _steps(step):
            middle = x + step / 2 * (row % 2)
            cell = [(middle + 0.58 * step * sin(pi * k / 3), y + 0.58 * step * cos(pi * k / 3)) for k in range(7)]
            canvas.line(ink, 0.13 * step, cell)


def _draw_scaly(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    rows = _steps(0.45 * step)
    for row, y in enumerate(reversed(rows)):  # a scale covers the upper part of those below it
        for x in _steps(step):
            middle = x + step / 2 * (row % 2)
            canvas.polygon(shade(ink, -0.6), disc(middle, y, 0.54 * step))
            canvas.polygon(ink, disc(middle, y - 0.05 * step, 0.46 * step))


def _draw_woven(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for row, y in enumerate(_steps(step / 2)):
        for column, x in enumerate(_steps(step / 2)):
            is_over = (row + column) % 2
            half, high = (0.24 * step, 0.14 * step) if is_over else (0.14 * step, 0.24 * step)
            canvas.polygon(ink if is_over else shade(ink, -0.3), box(x - half, y - high, x + half, y + high))


def _draw_cracked(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    for _ in range(int(5 / step)):
        x, y, angle = rng.uniform(-1.2, 1.2), rng.uniform(-1.2, 1.2), rng.uniform(0, 2 * pi)
        path = [(x, y)]
        for _ in range(7):
            angle = _near(rng, angle, 0.8)
            path.append((path[-1][0] + 0.22 * cos(angle), path[-1][1] + 0.22 * sin(angle)))
        canvas.line(ink, rng.uniform(0.03, 0.07), path)


def _draw_spiralled(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    turns = int(1.5 / step) + 2
    path = [(0.7 * step * t / 12 * cos(pi * t / 6), 0.7 * step * t / 12 * sin(pi * t / 6)) for t in range(12 * turns)]
    canvas.line(ink, 0.25 * step, path)


def _draw_marbled(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    cells = int(2 / step) + 2
    canvas.cover(shade(ink, 0.3), clouds(rng, cells, 60, 200))
    veins = clouds(rng, cells)
    canvas.cover(ink, veins.point([max(0, 255 - 14 * abs(value - 128)) for value in range(256)]))


def _draw_stained(rng: Random, canvas: Canvas, ink: Colour, step: float) -> None:
    canvas.cover(ink, clouds(rng, int(2 / step) + 2, 135, 165))


TEXTURES: dict[str, Draw] = {
    "lined": _draw_lined,
    "banded": _draw_banded,
    "chequered": _draw_chequered,
    "grid": _draw_grid,
    "crosshatched": _draw_crosshatched,
    "dotted": _draw_dotted,
    "bubbly": _draw_bubbly,
    "zigzagged": _draw_zigzagged,
    "wavy": _draw_wavy,
    "honeycombed": _draw_honeycombed,
    "scaly": _draw_scaly,
    "woven": _draw_woven,
    "cracked": _draw_cracked,
    "spiralled": _draw_spiralled,
    "marbled": _draw_marbled,
    "stained": _draw_stained,
}


def draw_texture(rng: Random, name: str, look: Look) -> Image.Image:
    """A texture; in a photo at any scale and angle and faint at times, on the web large, upright and clear."""
    ground = any_colour(rng, 40, 230)
    contrast = rng.uniform(0.6, 0.9) if look.plain else rng.uniform(0.3, 0.8)
    ink = jitter(rng, shade(ground, -contrast if sum(ground) > 380 else contrast), 25)
    canvas = Canvas(ground)
    if look.plain:
        canvas.pose = Pose(turn=rng.choice((0, 0.5)))
    else:
        x, y = (24 + rng.uniform(-10, 10) for _ in "xy")
        canvas.pose = Pose(x, y, rng.uniform(20, 27), rng.uniform(0, 2), lean=rng.uniform(-0.3, 0.3))
        canvas.cover(jitter(rng, ground, 40), clouds(rng, 3))
    TEXTURES[name](rng, canvas, ink, rng.uniform(0.34, 0.44) if look.plain else rng.uniform(0.24, 0.5))
    return canvas.take(rng, look)
