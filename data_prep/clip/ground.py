"""What pictures from above are made of: ground, roads, houses."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sin
from random import Random

from data_prep.clip.canvas import OUTSIDE, Canvas, Colour, Point, box, clouds, jitter, shade

GRASS, FOREST, SOIL, WATER = (105, 140, 80), (45, 85, 50), (165, 140, 105), (45, 85, 120)
PAINT = (235, 235, 230)  # on roads
ROOFS = ((165, 85, 65), (120, 110, 110), (190, 185, 180), (140, 70, 60), (95, 105, 120))

Draw = Callable[[Random, Canvas], None]


def draw_ground(rng: Random, canvas: Canvas, colour: Colour, other: Colour | None = None) -> None:
    """Ground everywhere, with patches of another colour (a shade of it unless given)."""
    ground = jitter(rng, colour, 22)
    canvas.polygon(ground, box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    patches = jitter(rng, other, 22) if other else shade(ground, rng.choice((-0.25, 0.2)))
    canvas.cover(patches, clouds(rng, rng.randint(3, 7), 100, 190))


def bend(rng: Random, at: float, swing: float) -> list[Point]:
    """A winding line from edge to edge."""
    phase, waves = rng.uniform(0, 2 * pi), rng.uniform(0.7, 1.4)
    steps = [-OUTSIDE + 2 * OUTSIDE * step / 16 for step in range(17)]
    return [(x, at + swing * sin(phase + waves * pi * x)) for x in steps]


def draw_road(canvas: Canvas, colour: Colour, width: float, path: list[Point], is_marked: bool = True) -> None:
    """A road along a path, with a line in its middle where it is marked."""
    canvas.line(colour, width, path)
    if is_marked:
        canvas.line(PAINT, 0.02, path)


def draw_houses(rng: Random, canvas: Canvas, step: float, fill: float) -> None:
    """Roofs on a grid; fill: how many of its places are built on."""
    for row in range(int(2 / step) + 1):
        for column in range(int(2 / step) + 1):
            if rng.random() < fill:
                x, y = (-1 + at * step + rng.uniform(-0.15, 0.15) * step for at in (column, row))
                wide, high = (rng.uniform(0.26, 0.38) * step for _ in "xy")
                roof = jitter(rng, rng.choice(ROOFS))
                canvas.polygon((60, 65, 60), box(x - wide + 0.03, y - high + 0.03, x + wide + 0.03, y + high + 0.03))
                canvas.polygon(roof, box(x - wide, y - high, x + wide, y + high))
                canvas.polygon(shade(roof, -0.2), box(x - wide, y, x + wide, y + high))
