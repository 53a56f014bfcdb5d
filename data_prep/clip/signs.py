"""The drawn GTSRB: traffic signs, told apart by outline, colours and what is on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from PIL import Image

from data_prep.clip.canvas import (
    FINE,
    SIDE,
    Canvas,
    Colour,
    Look,
    Point,
    Points,
    Pose,
    any_colour,
    box,
    clouds,
    disc,
    jitter,
)
from data_prep.clip.digits import draw_strokes

RED, WHITE, BLACK = (196, 30, 38), (238, 238, 236), (28, 28, 32)
BLUE, YELLOW, GREEN = (28, 84, 180), (244, 190, 40), (40, 160, 84)
ROUND = disc(0, 0, 1)
OCTAGON = [(-0.41, -1), (0.41, -1), (1, -0.41), (1, 0.41), (0.41, 1), (-0.41, 1), (-1, 0.41), (-1, -0.41)]
DIAMOND: list[Point] = [(0, -1), (1, 0), (0, 1), (-1, 0)]
WARNING: list[Point] = [(0, -0.95), (1, 0.78), (-1, 0.78)]
GIVE_WAY = [(x, -y) for x, y in WARNING]

# The plates: an outline, filled ring by ring towards the middle

Plate = tuple[Points, tuple[tuple[float, Colour], ...]]  # outline; size and colour of each ring
BAN: Plate = (ROUND, ((1.0, RED), (0.76, WHITE)))
ORDER: Plate = (ROUND, ((1.0, WHITE), (0.93, BLUE)))
DANGER: Plate = (WARNING, ((1.0, RED), (0.66, WHITE)))


def _shrink(points: Points, size: float) -> list[Point]:
    """An outline about its centre of gravity."""
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    return [(middle_x + size * (x - middle_x), middle_y + size * (y - middle_y)) for x, y in points]


# What is on them: functions of a canvas whose frame is the sign's, -1 to 1 across and down


def _write_number(canvas: Canvas, number: str) -> None:
    pose = canvas.pose
    for place, name in enumerate(number):
        shift = (place - (len(number) - 1) / 2) * 0.62
        x, y = (part / FINE for part in pose.place([(shift, 0)])[0])
        canvas.pose = replace(pose, x=x, y=y, unit=pose.unit * 0.4)
        draw_strokes(canvas, BLACK, 0.36, name)
    canvas.pose = pose


def _draw_arrow(canvas: Canvas, *path: Point, colour: Colour = WHITE) -> None:
    """An arrow along a path; its head points as the last piece does."""
    canvas.line(colour, 0.24, path)
    (x0, y0), (x, y) = path[-2:]
    length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
    dx, dy = 0.34 * (x - x0) / length, 0.34 * (y - y0) / length
    canvas.polygon(colour, [(x + dx, y + dy), (x - dy, y + dx), (x + dy, y - dx)])


def _draw_car(canvas: Canvas, x: float, colour: Colour) -> None:
    canvas.polygon(colour, box(x - 0.24, -0.05, x + 0.24, 0.22))
    canvas.polygon(colour, [(x - 0.15, -0.28), (x + 0.15, -0.28), (x + 0.22, 0), (x - 0.22, 0)])
    for side in (-0.16, 0.16):
        canvas.polygon(colour, box(x + side - 0.06, 0.2, x + side + 0.06, 0.32))


def _draw_two_cars(canvas: Canvas) -> None:
    _draw_car(canvas, -0.28, RED)
    _draw_car(canvas, 0.28, BLACK)


def _draw_bar(canvas: Canvas) -> None:
    canvas.polygon(WHITE, box(-0.7, -0.18, 0.7, 0.18))


def _draw_exclamation(canvas: Canvas) -> None:
    canvas.polygon(BLACK, [(-0.1, -0.3), (0.1, -0.3), (0.06, 0.25), (-0.06, 0.25)])
    canvas.polygon(BLACK, disc(0, 0.42, 0.1))


def _draw_bend(canvas: Canvas, side: int) -> None:
    _draw_arrow(canvas, (-0.1 * side, 0.5), (-0.1 * side, 0.2), (0.12 * side, -0.1), colour=BLACK)


def _draw_bumps(canvas: Canvas) -> None:
    for x in (-0.22, 0.22):
        canvas.polygon(BLACK, disc(x, 0.5, 0.22, 0.3, 1, 2))
    canvas.polygon(BLACK, box(-0.5, 0.44, 0.5, 0.54))


def _draw_pedestrian(canvas: Canvas) -> None:
    canvas.polygon(BLACK, disc(0, -0.25, 0.1))
    canvas.line(BLACK, 0.13, [(0, -0.1), (0, 0.2), (-0.18, 0.52)])
    canvas.line(BLACK, 0.1, [(0, 0.2), (0.18, 0.52)])
    canvas.line(BLACK, 0.08, [(-0.24, 0.12), (0, -0.05), (0.24, 0.1)])


def _draw_lights(canvas: Canvas) -> None:
    for y, colour in ((-0.2, RED), (0.1, YELLOW), (0.4, GREEN)):
        canvas.polygon(colour, disc(0, y, 0.15))


def _draw_circle_of_arrows(canvas: Canvas) -> None:
    for start in (0.0, 2 / 3, 4 / 3):
        _draw_arrow(canvas, *disc(0, 0, 0.5, 0.5, start, start + 0.34))


def _draw_stop(canvas: Canvas) -> None:
    """Four letters, too small to be read."""
    for x in (-0.57, -0.19, 0.19, 0.57):
        canvas.line(WHITE, 0.13, [(x + 0.1, -0.26), (x - 0.08, -0.2), (x + 0.08, 0.2), (x - 0.1, 0.26)])


def _draw_nothing(canvas: Canvas) -> None:
    """The plate says it all."""


def _number(text: str) -> Callable[[Canvas], None]:
    return lambda canvas: _write_number(canvas, text)


def _arrow(*path: Point) -> Callable[[Canvas], None]:
    return lambda canvas: _draw_arrow(canvas, *path)


SIGNS: dict[str, tuple[Plate, Callable[[Canvas], None]]] = {
    **{f"speed limit {number}": (BAN, _number(number)) for number in ("30", "50", "60", "80")},
    "no overtaking": (BAN, _draw_two_cars),
    "no vehicles": (BAN, _draw_nothing),
    "no entry": ((ROUND, ((1.0, RED),)), _draw_bar),
    "stop": ((OCTAGON, ((1.0, WHITE), (0.94, RED))), _draw_stop),
    "yield": ((GIVE_WAY, DANGER[1]), _draw_nothing),
    "priority road": ((DIAMOND, ((1.0, WHITE), (0.66, YELLOW))), _draw_nothing),
    "general caution": (DANGER, _draw_exclamation),
    "curve left": (DANGER, lambda canvas: _draw_bend(canvas, -1)),
    "curve right": (DANGER, lambda canvas: _draw_bend(canvas, 1)),
    "bumpy road": (DANGER, _draw_bumps),
    "pedestrians": (DANGER, _draw_pedestrian),
    "traffic signals": (DANGER, _draw_lights),
    "turn left ahead": (ORDER, _arrow((0.3, 0.55), (0.3, -0.1), (-0.25, -0.1))),
    "turn right ahead": (ORDER, _arrow((-0.3, 0.55), (-0.3, -0.1), (0.25, -0.1))),
    "ahead only": (ORDER, _arrow((0, 0.6), (0, -0.3))),
    "keep right": (ORDER, _arrow((-0.35, -0.4), (0.25, 0.25))),
    "roundabout": (ORDER, _draw_circle_of_arrows),
}


def draw_sign(rng: Random, name: str, look: Look) -> Image.Image:
    """A traffic sign; in a photo small and tilted before trees, houses and sky, on the web large on an even ground."""
    canvas = Canvas(jitter(rng, (225, 225, 225), 25) if look.plain else any_colour(rng, 60, 200))
    if not look.plain:
        _draw_roadside(rng, canvas)
    unit = rng.uniform(17, 21) if look.plain else rng.uniform(10.5, 18)
    spare = 0.5 * (SIDE / 2 - unit)
    x, y = (SIDE / 2 + rng.uniform(-spare, spare) for _ in "xy")
    pose = Pose(x, y, unit, rng.uniform(-0.07, 0.07), lean=rng.uniform(-0.12, 0.12))
    canvas.pose = pose
    if not look.plain:
        canvas.line((130, 130, 135), 0.14, [(0, 0.6), (0, 4)])
    (outline, rings), draw_inside = SIGNS[name]
    for size, colour in rings:
        canvas.polygon(jitter(rng, colour, 14), _shrink(outline, size))
    draw_inside(canvas)
    return canvas.take(rng, look)


def _draw_roadside(rng: Random, canvas: Canvas) -> None:
    """Patches of leaves or clouds, and a house or a trunk or two."""
    canvas.cover(any_colour(rng, 30, 220), clouds(rng, rng.randint(2, 7), 90, 170))
    for _ in range(rng.randint(0, 3)):
        left, top = rng.uniform(-1.2, 0.8), rng.uniform(-1, 0.6)
        canvas.polygon(any_colour(rng, 30, 200), box(left, top, left + rng.uniform(0.15, 0.8), 1))
