"""The drawn RESISC45: places from above, a structure in the middle, seen from any side."""

from __future__ import annotations

from math import cos, pi, sin
from random import Random

from PIL import Image

from data_prep.clip.canvas import OUTSIDE, Canvas, Look, Pose, any_colour, box, disc, jitter, shade
from data_prep.clip.ground import (
    FOREST,
    GRASS,
    PAINT,
    SOIL,
    WATER,
    Draw,
    bend,
    draw_ground,
    draw_houses,
    draw_road,
)

ASPHALT, CONCRETE = (95, 95, 100), (185, 182, 175)
CARS = ((235, 235, 235), (190, 40, 40), (40, 60, 130), (40, 40, 45), (160, 160, 165))


def _cars(rng: Random, canvas: Canvas, count: int, across: float, lane: float, is_upright: bool = False) -> None:
    """Cars along a straight road in the middle, at most `across` from it, in lanes."""
    for _ in range(count):
        x, y = rng.uniform(-1, 1), rng.choice((-1, 1)) * rng.uniform(lane, across)
        x, y = (y, x) if is_upright else (x, y)
        half, wide = (0.025, 0.055) if is_upright else (0.055, 0.025)
        canvas.polygon(rng.choice(CARS), box(x - half, y - wide, x + half, y + wide))


def _trees(rng: Random, canvas: Canvas, count: int) -> None:
    for _ in range(count):
        x, y, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.04, 0.1)
        canvas.polygon((35, 50, 35), disc(x + 0.03, y + 0.03, radius))
        canvas.polygon(jitter(rng, (60, 105, 55), 25), disc(x, y, radius))


def _draw_runway(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, SOIL)))
    at, half = rng.uniform(-0.3, 0.3), rng.uniform(0.16, 0.26)
    canvas.polygon(jitter(rng, ASPHALT), box(-OUTSIDE, at - half, OUTSIDE, at + half))
    for step in range(7):
        canvas.polygon(PAINT, box(-1.2 + 0.36 * step, at - 0.015, -1.0 + 0.36 * step, at + 0.015))
    end = rng.uniform(-0.9, -0.3)
    for bar in range(6):
        y = at + half * (-0.8 + 0.3 * bar)
        canvas.polygon(PAINT, box(end, y, end + 0.22, y + 0.03))
    canvas.line(jitter(rng, ASPHALT), 0.1, [(0.2, at), (0.5, at + 0.6), (0.5, OUTSIDE)])


def _draw_freeway(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, SOIL, CONCRETE)))
    half = rng.uniform(0.24, 0.34)
    canvas.polygon(jitter(rng, ASPHALT), box(-OUTSIDE, -half, OUTSIDE, half))
    canvas.polygon(jitter(rng, GRASS), box(-OUTSIDE, -0.04, OUTSIDE, 0.04))
    for y in (-half / 2, half / 2):
        for step in range(12):
            canvas.polygon(PAINT, box(-1.2 + 0.2 * step, y - 0.01, -1.1 + 0.2 * step, y + 0.01))
    _cars(rng, canvas, rng.randint(3, 9), half - 0.04, 0.08)


def _draw_intersection(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, CONCRETE)
    draw_houses(rng, canvas, 0.5, 0.8)
    road, half = jitter(rng, ASPHALT), rng.uniform(0.13, 0.2)
    canvas.polygon(road, box(-OUTSIDE, -half, OUTSIDE, half))
    canvas.polygon(road, box(-half, -OUTSIDE, half, OUTSIDE))
    for near in (-half - 0.1, half + 0.04):
        for bar in (-0.6, -0.1, 0.4):
            canvas.polygon(PAINT, box(near, bar * half, near + 0.06, (bar + 0.25) * half))
            canvas.polygon(PAINT, box(bar * half, near, (bar + 0.25) * half, near + 0.06))
    _cars(rng, canvas, rng.randint(1, 4), half - 0.04, 0.05)
    _cars(rng, canvas, rng.randint(1, 4), half - 0.04, 0.05, is_upright=True)


def _draw_roundabout(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, CONCRETE)))
    if rng.random() < 0.5:
        draw_houses(rng, canvas, 0.5, 0.5)
    road, radius = jitter(rng, ASPHALT), rng.uniform(0.4, 0.55)
    for arm in range(rng.randint(3, 4)):
        angle = pi * (arm / 2 + rng.uniform(-0.06, 0.06))
        draw_road(canvas, road, 0.24, [(0, 0), (OUTSIDE * cos(angle), OUTSIDE * sin(angle))])
    canvas.polygon(road, disc(0, 0, radius))
    canvas.polygon(jitter(rng, GRASS), disc(0, 0, radius - 0.22))


def _draw_bridge(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, SOIL)))
    half = rng.uniform(0.35, 0.65)
    water = jitter(rng, WATER)
    canvas.polygon(water, box(-half, -OUTSIDE, half, OUTSIDE))
    y = rng.uniform(-0.25, 0.25)
    canvas.polygon(shade(water, -0.4), box(-half, y + 0.1, half, y + 0.18))
    draw_road(canvas, jitter(rng, CONCRETE), 0.22, [(-OUTSIDE, y), (OUTSIDE, y)])


def _draw_river(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, SOIL, FOREST)))
    path, width = bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.4)), rng.uniform(0.2, 0.4)
    canvas.line(jitter(rng, SOIL), width + 0.08, path)
    canvas.line(jitter(rng, WATER), width, path)
    _trees(rng, canvas, rng.randint(0, 8))


def _draw_harbor(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, WATER)
    for row in (-0.6, 0.1, 0.8):
        y = row + rng.uniform(-0.12, 0.12)
        canvas.polygon(jitter(rng, CONCRETE), box(-OUTSIDE, y, OUTSIDE, y + 0.06))
        for step in range(10):
            for side in (-0.14, 0.2):
                if rng.random() < 0.75:
                    x = -1 + 0.22 * step
                    hull = disc(x, y + side, 0.055, rng.uniform(0.09, 0.13))
                    canvas.polygon(jitter(rng, PAINT, 15), hull)
                    canvas.polygon((150, 110, 80), disc(x, y + side + 0.02, 0.025, 0.04))


def _draw_parking_lot(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, ASPHALT)
    fill = rng.uniform(0.4, 0.95)
    for row in range(6):
        y = -1.1 + 0.42 * row
        for step in range(15):
            x = -1.05 + 0.15 * step
            canvas.line(PAINT, 0.012, [(x - 0.07, y), (x - 0.07, y + 0.2)])
            if rng.random() < fill:
                canvas.polygon(rng.choice(CARS), box(x - 0.045, y + 0.02, x + 0.045, y + 0.19))


def _draw_dense(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, (120, 125, 105))
    draw_houses(rng, canvas, rng.uniform(0.26, 0.34), 0.95)
    draw_road(
        canvas,
        jitter(rng, ASPHALT),
        0.1,
        [(-OUTSIDE, rng.uniform(-0.6, 0.6)), (OUTSIDE, rng.uniform(-0.6, 0.6))],
        False,
    )
    _trees(rng, canvas, rng.randint(4, 16))


def _draw_sparse(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, SOIL)))
    draw_road(canvas, jitter(rng, CONCRETE), 0.08, bend(rng, rng.uniform(-0.3, 0.3), 0.15), False)
    draw_houses(rng, canvas, 0.6, 0.25)
    _trees(rng, canvas, rng.randint(6, 24))


def _draw_tanks(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((SOIL, CONCRETE)))
    step, radius = rng.uniform(0.5, 0.7), rng.uniform(0.16, 0.24)
    for row in range(-2, 3):
        for column in range(-2, 3):
            if rng.random() < 0.75:
                x, y, top = column * step, row * step, jitter(rng, (215, 215, 210), 25)
                canvas.polygon((70, 70, 70), disc(x + 0.08, y + 0.08, radius))
                canvas.polygon(top, disc(x, y, radius))
                canvas.polygon(shade(top, -0.2), disc(x, y, radius * 0.8))


def _draw_diamond(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, GRASS)
    y, size = rng.uniform(0.5, 0.8), rng.uniform(1.0, 1.4)
    canvas.polygon(jitter(rng, (185, 135, 90)), [(0, y), *disc(0, y, 0.8 * size, 0.8 * size, 1.25, 1.75)])
    middle = y - 0.42 * size
    half = 0.27 * size
    canvas.polygon(jitter(rng, GRASS), [(0, middle - half), (half, middle), (0, middle + half), (-half, middle)])
    canvas.polygon(jitter(rng, (185, 135, 90)), disc(0, middle, 0.07))
    for side in (-1, 1):
        canvas.line(PAINT, 0.025, [(0, y), (side * size, y - size)])


def _draw_court(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, CONCRETE)))
    court, inner = any_colour(rng, 50, 160), any_colour(rng, 60, 180)
    wide, high = rng.uniform(0.38, 0.5), rng.uniform(0.65, 0.85)
    canvas.polygon(court, box(-wide - 0.15, -high - 0.15, wide + 0.15, high + 0.15))
    canvas.polygon(inner, box(-wide, -high, wide, high))
    edge = box(-wide, -high, wide, high)
    for path in ([*edge, edge[0]], [(-wide, 0), (wide, 0)], [(0, -high / 2), (0, high / 2)]):
        canvas.line(PAINT, 0.03, path)
    for y in (-high / 2, high / 2):
        canvas.line(PAINT, 0.03, [(-wide, y), (wide, y)])


def _draw_field(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((GRASS, CONCRETE)))
    wide, high = rng.uniform(0.65, 0.85), rng.uniform(0.42, 0.55)
    track = [
        *disc(-wide + high, 0, high + 0.14, high + 0.14, 0.5, 1.5),
        *disc(wide - high, 0, high + 0.14, high + 0.14, 1.5, 2.5),
    ]
    canvas.polygon(jitter(rng, (175, 85, 65)), track)
    canvas.polygon(jitter(rng, (80, 145, 70)), [(0.84 * x, 0.76 * y) for x, y in track])
    canvas.line(PAINT, 0.025, [(0, -0.4), (0, 0.4)])
    canvas.line(PAINT, 0.025, [*disc(0, 0, 0.13), (0.13, 0)])


def _draw_railway(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, rng.choice((SOIL, CONCRETE, GRASS)))
    at = rng.uniform(-0.2, 0.2)
    for track in range(rng.randint(1, 3)):
        y = at + 0.24 * track
        canvas.polygon(jitter(rng, (125, 110, 100)), box(-OUTSIDE, y - 0.1, OUTSIDE, y + 0.1))
        for step in range(26):
            canvas.polygon((85, 70, 60), box(-1.3 + 0.1 * step, y - 0.08, -1.27 + 0.1 * step, y + 0.08))
        for rail in (-0.04, 0.04):
            canvas.line((210, 210, 215), 0.018, [(-OUTSIDE, y + rail), (OUTSIDE, y + rail)])
    if rng.random() < 0.5:
        canvas.polygon(any_colour(rng, 60, 220), box(-OUTSIDE, at - 0.06, rng.uniform(-0.4, 0.8), at + 0.06))


def _draw_island(rng: Random, canvas: Canvas) -> None:
    draw_ground(rng, canvas, WATER)
    radii = [rng.uniform(0.4, 0.75) for _ in range(9)]
    for size, colour in ((1.0, (215, 205, 165)), (0.8, rng.choice((FOREST, GRASS)))):
        points = [(size * r * cos(2 * pi * k / 9), size * r * sin(2 * pi * k / 9)) for k, r in enumerate(radii)]
        canvas.polygon(jitter(rng, colour), points)


PLACES: dict[str, Draw] = {
    "airport runway": _draw_runway,
    "freeway": _draw_freeway,
    "railway": _draw_railway,
    "intersection": _draw_intersection,
    "roundabout": _draw_roundabout,
    "bridge": _draw_bridge,
    "river": _draw_river,
    "harbor": _draw_harbor,
    "island": _draw_island,
    "parking lot": _draw_parking_lot,
    "dense residential area": _draw_dense,
    "sparse residential area": _draw_sparse,
    "storage tanks": _draw_tanks,
    "baseball diamond": _draw_diamond,
    "tennis court": _draw_court,
    "ground track field": _draw_field,
}


def draw_aerial(rng: Random, name: str, look: Look) -> Image.Image:
    """A place from above; in a photo turned to any side and from any height, on the web north is up."""
    canvas = Canvas(GRASS)
    if look.plain:
        canvas.pose = Pose(turn=rng.choice((0, 0.5)), mirror=rng.random() < 0.5)
    else:
        x, y = (24 + rng.uniform(-6, 6) for _ in "xy")
        canvas.pose = Pose(x, y, rng.uniform(17, 28), rng.uniform(0, 2), rng.random() < 0.5)
    PLACES[name](rng, canvas)
    return canvas.take(rng, look)
