"""The drawn RESISC45 and EuroSAT: pictures from above, of single structures and of the use of the land."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin
from random import Random

from PIL import Image, ImageFilter

from data_prep.clip.canvas import (
    FINE,
    OUTSIDE,
    Canvas,
    Colour,
    Look,
    Point,
    Pose,
    any_colour,
    box,
    clouds,
    disc,
    jitter,
    mix,
    shade,
    spoil,
)

GRASS, FOREST, SOIL, WATER = (105, 140, 80), (45, 85, 50), (165, 140, 105), (45, 85, 120)
ASPHALT, CONCRETE, PAINT = (95, 95, 100), (185, 182, 175), (235, 235, 230)
ROOFS = ((165, 85, 65), (120, 110, 110), (190, 185, 180), (140, 70, 60), (95, 105, 120))
CARS = ((235, 235, 235), (190, 40, 40), (40, 60, 130), (40, 40, 45), (160, 160, 165))

Draw = Callable[[Random, Canvas], None]

# What several places have


def _land(rng: Random, canvas: Canvas, colour: Colour, other: Colour | None = None) -> None:
    """Ground everywhere, with patches of another colour (a shade of it unless given)."""
    ground = jitter(rng, colour, 22)
    canvas.polygon(ground, box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    patches = jitter(rng, other, 22) if other else shade(ground, rng.choice((-0.25, 0.2)))
    canvas.cover(patches, clouds(rng, rng.randint(3, 7), 100, 190))


def _bend(rng: Random, at: float, swing: float) -> list[Point]:
    """A winding line from edge to edge."""
    phase, waves = rng.uniform(0, 2 * pi), rng.uniform(0.7, 1.4)
    steps = [-OUTSIDE + 2 * OUTSIDE * step / 16 for step in range(17)]
    return [(x, at + swing * sin(phase + waves * pi * x)) for x in steps]


def _road(canvas: Canvas, colour: Colour, width: float, path: list[Point], is_marked: bool = True) -> None:
    canvas.line(colour, width, path)
    if is_marked:
        canvas.line(PAINT, 0.02, path)


def _cars(rng: Random, canvas: Canvas, count: int, across: float, lane: float, is_upright: bool = False) -> None:
    """Cars along a straight road in the middle, at most `across` from it, in lanes."""
    for _ in range(count):
        x, y = rng.uniform(-1, 1), rng.choice((-1, 1)) * rng.uniform(lane, across)
        x, y = (y, x) if is_upright else (x, y)
        half, wide = (0.025, 0.055) if is_upright else (0.055, 0.025)
        canvas.polygon(rng.choice(CARS), box(x - half, y - wide, x + half, y + wide))


def _houses(rng: Random, canvas: Canvas, step: float, fill: float) -> None:
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


def _trees(rng: Random, canvas: Canvas, count: int) -> None:
    for _ in range(count):
        x, y, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.04, 0.1)
        canvas.polygon((35, 50, 35), disc(x + 0.03, y + 0.03, radius))
        canvas.polygon(jitter(rng, (60, 105, 55), 25), disc(x, y, radius))


# RESISC45: a structure in the middle, seen from any side


def _draw_runway(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((GRASS, SOIL)))
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
    _land(rng, canvas, rng.choice((GRASS, SOIL, CONCRETE)))
    half = rng.uniform(0.24, 0.34)
    canvas.polygon(jitter(rng, ASPHALT), box(-OUTSIDE, -half, OUTSIDE, half))
    canvas.polygon(jitter(rng, GRASS), box(-OUTSIDE, -0.04, OUTSIDE, 0.04))
    for y in (-half / 2, half / 2):
        for step in range(12):
            canvas.polygon(PAINT, box(-1.2 + 0.2 * step, y - 0.01, -1.1 + 0.2 * step, y + 0.01))
    _cars(rng, canvas, rng.randint(3, 9), half - 0.04, 0.08)


def _draw_intersection(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, CONCRETE)
    _houses(rng, canvas, 0.5, 0.8)
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
    _land(rng, canvas, rng.choice((GRASS, CONCRETE)))
    if rng.random() < 0.5:
        _houses(rng, canvas, 0.5, 0.5)
    road, radius = jitter(rng, ASPHALT), rng.uniform(0.4, 0.55)
    for arm in range(rng.randint(3, 4)):
        angle = pi * (arm / 2 + rng.uniform(-0.06, 0.06))
        _road(canvas, road, 0.24, [(0, 0), (OUTSIDE * cos(angle), OUTSIDE * sin(angle))])
    canvas.polygon(road, disc(0, 0, radius))
    canvas.polygon(jitter(rng, GRASS), disc(0, 0, radius - 0.22))


def _draw_bridge(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((GRASS, SOIL)))
    half = rng.uniform(0.35, 0.65)
    water = jitter(rng, WATER)
    canvas.polygon(water, box(-half, -OUTSIDE, half, OUTSIDE))
    y = rng.uniform(-0.25, 0.25)
    canvas.polygon(shade(water, -0.4), box(-half, y + 0.1, half, y + 0.18))
    _road(canvas, jitter(rng, CONCRETE), 0.22, [(-OUTSIDE, y), (OUTSIDE, y)])


def _draw_river(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((GRASS, SOIL, FOREST)))
    path, width = _bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.4)), rng.uniform(0.2, 0.4)
    canvas.line(jitter(rng, SOIL), width + 0.08, path)
    canvas.line(jitter(rng, WATER), width, path)
    _trees(rng, canvas, rng.randint(0, 8))


def _draw_harbor(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, WATER)
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
    _land(rng, canvas, ASPHALT)
    fill = rng.uniform(0.4, 0.95)
    for row in range(6):
        y = -1.1 + 0.42 * row
        for step in range(15):
            x = -1.05 + 0.15 * step
            canvas.line(PAINT, 0.012, [(x - 0.07, y), (x - 0.07, y + 0.2)])
            if rng.random() < fill:
                canvas.polygon(rng.choice(CARS), box(x - 0.045, y + 0.02, x + 0.045, y + 0.19))


def _draw_dense(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, (120, 125, 105))
    _houses(rng, canvas, rng.uniform(0.26, 0.34), 0.95)
    _road(
        canvas,
        jitter(rng, ASPHALT),
        0.1,
        [(-OUTSIDE, rng.uniform(-0.6, 0.6)), (OUTSIDE, rng.uniform(-0.6, 0.6))],
        False,
    )
    _trees(rng, canvas, rng.randint(4, 16))


def _draw_sparse(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((GRASS, SOIL)))
    _road(canvas, jitter(rng, CONCRETE), 0.08, _bend(rng, rng.uniform(-0.3, 0.3), 0.15), False)
    _houses(rng, canvas, 0.6, 0.25)
    _trees(rng, canvas, rng.randint(6, 24))


def _draw_tanks(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((SOIL, CONCRETE)))
    step, radius = rng.uniform(0.5, 0.7), rng.uniform(0.16, 0.24)
    for row in range(-2, 3):
        for column in range(-2, 3):
            if rng.random() < 0.75:
                x, y, top = column * step, row * step, jitter(rng, (215, 215, 210), 25)
                canvas.polygon((70, 70, 70), disc(x + 0.08, y + 0.08, radius))
                canvas.polygon(top, disc(x, y, radius))
                canvas.polygon(shade(top, -0.2), disc(x, y, radius * 0.8))


def _draw_diamond(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, GRASS)
    y, size = rng.uniform(0.5, 0.8), rng.uniform(1.0, 1.4)
    canvas.polygon(jitter(rng, (185, 135, 90)), [(0, y), *disc(0, y, 0.8 * size, 0.8 * size, 1.25, 1.75)])
    middle = y - 0.42 * size
    half = 0.27 * size
    canvas.polygon(jitter(rng, GRASS), [(0, middle - half), (half, middle), (0, middle + half), (-half, middle)])
    canvas.polygon(jitter(rng, (185, 135, 90)), disc(0, middle, 0.07))
    for side in (-1, 1):
        canvas.line(PAINT, 0.025, [(0, y), (side * size, y - size)])


def _draw_court(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice((GRASS, CONCRETE)))
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
    _land(rng, canvas, rng.choice((GRASS, CONCRETE)))
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
    _land(rng, canvas, rng.choice((SOIL, CONCRETE, GRASS)))
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
    _land(rng, canvas, WATER)
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


# EuroSAT: the same kind of ground everywhere, at ten metres a pixel


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
    _land(rng, canvas, (110, 140, 80), (95, 125, 75))
    for _ in range(rng.randint(1, 4)):
        at = rng.uniform(-1, 1)
        canvas.line((70, 95, 60), 0.05, [(-OUTSIDE, at), (OUTSIDE, at + rng.uniform(-0.5, 0.5))])


def _draw_brushland(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, (130, 130, 95), (95, 110, 75))
    canvas.cover(jitter(rng, (75, 90, 60)), clouds(rng, 12, 150, 210))


def _draw_forest(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, (45, 75, 55), (55, 90, 60))
    canvas.cover(jitter(rng, (35, 60, 48), 10), clouds(rng, 14, 140, 220))


def _draw_road(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((125, 130, 90), (150, 130, 100), (95, 115, 75)), 0.9, 0.02)
    _road(
        canvas,
        jitter(rng, (175, 170, 170)),
        rng.uniform(0.1, 0.16),
        _bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0, 0.2)),
        False,
    )
    if rng.random() < 0.4:
        canvas.line(jitter(rng, (175, 170, 170)), 0.08, [(rng.uniform(-0.5, 0.5), -OUTSIDE), (0, 0)])


def _draw_stream(rng: Random, canvas: Canvas) -> None:
    _fields(rng, canvas, ((105, 125, 80), (130, 125, 95), (75, 100, 65)), 0.9, 0.02)
    canvas.line(
        jitter(rng, (65, 90, 95)), rng.uniform(0.14, 0.4), _bend(rng, rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.35))
    )


def _draw_sea(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, rng.choice(((35, 60, 95), (45, 80, 95), (50, 65, 75))))
    if rng.random() < 0.25:
        canvas.polygon(jitter(rng, (110, 120, 85)), disc(0, 1.7, 1.4, 1.0))


def _draw_residential(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, (125, 125, 110))
    _houses(rng, canvas, rng.uniform(0.18, 0.26), 0.85)
    for _ in range(rng.randint(1, 3)):
        at = rng.uniform(-0.8, 0.8)
        canvas.line((150, 148, 145), 0.07, [(-OUTSIDE, at), (OUTSIDE, at + rng.uniform(-0.3, 0.3))])


def _draw_industrial(rng: Random, canvas: Canvas) -> None:
    _land(rng, canvas, (140, 138, 132))
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
