"""The drawn SUN397: places outdoors and indoors, told apart by their layout."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image

from data_prep.clip.canvas import (
    OUTSIDE,
    SIDE,
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
    shade,
)

SKIES = ((135, 185, 235), (190, 210, 225), (110, 150, 210), (230, 190, 160), (170, 175, 185))
WATER, SAND, GRASS, SNOW, ROCK = (60, 120, 170), (220, 200, 150), (90, 145, 65), (235, 240, 245), (120, 110, 105)
LEAVES, TRUNK, WOOD, ROAD = (45, 105, 50), (85, 60, 40), (150, 100, 60), (95, 95, 100)
WALLS = ((225, 215, 195), (200, 210, 205), (190, 175, 160), (215, 200, 215), (165, 185, 200))

Draw = Callable[[Random, Canvas], None]

# What several places have


def _sky(rng: Random, canvas: Canvas) -> None:
    sky = jitter(rng, rng.choice(SKIES), 22)
    canvas.polygon(sky, box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    if rng.random() < 0.5:
        canvas.cover(shade(sky, 0.55), clouds(rng, 2, 120, 255, down=rng.randint(3, 6)))


def _ground(rng: Random, canvas: Canvas, colour: Colour, top: float, other: Colour | None = None) -> None:
    """All below a height, at its far end in another colour."""
    near = jitter(rng, colour)
    far = other or shade(near, 0.25)
    for step in range(4):
        canvas.polygon(mix(far, near, step / 3), box(-OUTSIDE, top + 0.12 * step**1.4, OUTSIDE, OUTSIDE))


def _ridge(rng: Random, canvas: Canvas, colour: Colour, top: float, height: float, peaks: int) -> None:
    """Mountains or dunes with their feet at `top`."""
    points = [(-OUTSIDE, top)]
    for peak in range(2 * peaks + 1):
        up = height * rng.uniform(0.7, 1.1) if peak % 2 else height * rng.uniform(0.1, 0.45)
        points.append((-1.2 + 1.2 * peak / peaks + rng.uniform(-0.1, 0.1), top - up))
    canvas.polygon(jitter(rng, colour), [*points, (OUTSIDE, top)])


def _tree(rng: Random, canvas: Canvas, x: float, foot: float, height: float) -> None:
    leaves = jitter(rng, LEAVES, 28)
    canvas.line(jitter(rng, TRUNK), 0.12 * height, [(x, foot), (x, foot - 0.6 * height)])
    if rng.random() < 0.5:
        canvas.polygon(leaves, [(x, foot - height), (x + 0.28 * height, foot - 0.2), (x - 0.28 * height, foot - 0.2)])
    else:
        canvas.polygon(leaves, disc(x, foot - 0.68 * height, 0.34 * height, 0.36 * height))


def _building(rng: Random, canvas: Canvas, left: float, right: float, top: float, foot: float) -> None:
    """A front with rows of windows."""
    wall = jitter(rng, rng.choice((*WALLS, (120, 90, 80), (90, 100, 115))), 20)
    canvas.polygon(wall, box(left, top, right, foot))
    pane = shade(wall, rng.choice((-0.5, 0.5)))
    wide, high = rng.uniform(0.07, 0.12), rng.uniform(0.08, 0.14)
    y = top + 0.06
    while y + high < foot:
        x = left + 0.05
        while x + wide < right:
            canvas.polygon(pane, box(x, y, x + wide, y + high))
            x += 1.8 * wide
        y += 1.8 * high


def _room(rng: Random, canvas: Canvas) -> tuple[float, float]:
    """Back wall, side walls, ceiling and floor. Returns the height of the floor's far edge, and half the back wall."""
    wall, floor = jitter(rng, rng.choice(WALLS)), jitter(rng, rng.choice((WOOD, (190, 180, 170), (120, 110, 120))))
    foot, half, top = rng.uniform(0.25, 0.42), rng.uniform(0.65, 0.95), rng.uniform(-0.8, -0.6)
    canvas.polygon(shade(wall, -0.15), box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    canvas.polygon(shade(wall, 0.4), [(-OUTSIDE, -1.6), (OUTSIDE, -1.6), (half, top), (-half, top)])
    canvas.polygon(floor, [(-OUTSIDE, 1.3), (OUTSIDE, 1.3), (half, foot), (-half, foot)])
    canvas.polygon(wall, box(-half, top, half, foot))
    if rng.random() < 0.5:
        x = rng.uniform(-0.5, 0.3)
        canvas.polygon(jitter(rng, (190, 220, 240)), box(x, -0.5, x + rng.uniform(0.2, 0.4), -0.1))
    return foot, half


def _fabric(rng: Random) -> Colour:
    return any_colour(rng, 50, 220)


# Outdoors


def _draw_beach(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    horizon, shore = rng.uniform(-0.35, 0.0), rng.uniform(0.2, 0.45)
    _ground(rng, canvas, WATER, horizon)
    slope = rng.uniform(-0.25, 0.25)
    edge = [(-OUTSIDE, shore - slope), (OUTSIDE, shore + slope)]
    canvas.line((245, 245, 245), 0.07, edge)
    canvas.polygon(jitter(rng, SAND), [*edge, (OUTSIDE, OUTSIDE), (-OUTSIDE, OUTSIDE)])
    for _ in range(rng.randint(0, 2)):
        x = rng.uniform(-0.8, 0.8)
        canvas.line(TRUNK, 0.03, [(x, 0.8), (x, 0.4)])
        canvas.polygon(_fabric(rng), disc(x, 0.45, 0.24, 0.16, 1, 2))


def _draw_lake(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    shore = rng.uniform(-0.15, 0.1)
    _ridge(rng, canvas, (80, 110, 100), shore, rng.uniform(0.25, 0.5), 2)
    _ground(rng, canvas, WATER, shore)
    for _ in range(rng.randint(2, 7)):
        _tree(rng, canvas, rng.uniform(-1, 1), shore + 0.04, rng.uniform(0.15, 0.35))
    if rng.random() < 0.6:
        canvas.polygon(jitter(rng, GRASS), disc(rng.uniform(-1, 1), 1.1, 1.1, 0.4))


def _draw_desert(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    for top in (rng.uniform(0.0, 0.2), rng.uniform(0.4, 0.7)):
        _ridge(rng, canvas, (215, 170, 105), top, rng.uniform(0.2, 0.35), 2)
        _ground(rng, canvas, (210, 165, 100), top)


def _draw_snowfield(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    horizon = rng.uniform(-0.2, 0.2)
    if rng.random() < 0.6:
        _ridge(rng, canvas, (205, 215, 230), horizon, rng.uniform(0.15, 0.35), 2)
    _ground(rng, canvas, SNOW, horizon, (210, 220, 235))
    for _ in range(rng.randint(1, 6)):
        _tree(rng, canvas, rng.uniform(-1, 1), horizon + rng.uniform(0, 0.3), rng.uniform(0.25, 0.5))


def _draw_mountain(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    foot = rng.uniform(0.3, 0.7)
    for _ in range(rng.randint(2, 3)):
        x, top, half = rng.uniform(-0.7, 0.7), rng.uniform(-0.8, -0.4), rng.uniform(0.6, 1)
        rock, cap = jitter(rng, ROCK), rng.uniform(0.2, 0.4)
        canvas.polygon(rock, [(x, top), (x + half, foot), (x - half, foot)])
        low = top + cap * (foot - top)
        canvas.polygon(SNOW, [(x, top), (x + cap * half, low), (x, low - 0.1), (x - cap * half, low)])
    _ground(rng, canvas, GRASS, foot)


def _draw_forest(rng: Random, canvas: Canvas) -> None:
    canvas.polygon(jitter(rng, (110, 150, 100), 30), box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    canvas.cover(jitter(rng, (60, 100, 55)), clouds(rng, 6, 80, 200))
    _ground(rng, canvas, (95, 85, 55), rng.uniform(0.35, 0.6), (80, 100, 55))
    for step in range(rng.randint(6, 11)):
        x, width = rng.uniform(-1, 1), 0.05 + 0.018 * step
        canvas.line(jitter(rng, TRUNK), width, [(x, 0.45 + 0.05 * step), (x + rng.uniform(-0.06, 0.06), -1.4)])


def _draw_field(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    horizon, at = rng.uniform(-0.2, 0.15), rng.uniform(-0.5, 0.5)
    crop = jitter(rng, rng.choice(((205, 175, 75), (120, 165, 70), (170, 190, 80))))
    _ground(rng, canvas, crop, horizon, crop)
    for step in range(-9, 10):
        canvas.line(shade(crop, -0.25), 0.035, [(at + step * 0.08, horizon + 0.02), (at + step * 0.55, 1.4)])
    for _ in range(rng.randint(0, 3)):
        _tree(rng, canvas, rng.uniform(-1, 1), horizon + 0.03, rng.uniform(0.15, 0.3))


def _draw_waterfall(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    x, half, top = rng.uniform(-0.4, 0.4), rng.uniform(0.12, 0.3), rng.uniform(-0.7, -0.3)
    canvas.polygon(jitter(rng, ROCK), box(-OUTSIDE, top, OUTSIDE, OUTSIDE))
    canvas.cover(jitter(rng, (60, 90, 55)), clouds(rng, 5, 140, 200).point(lambda value: value // 2))
    canvas.polygon((225, 235, 245), box(x - half, top, x + half, 0.6))
    for _ in range(6):
        at = x + rng.uniform(-half, half)
        canvas.line((175, 200, 220), 0.03, [(at, top), (at, 0.6)])
    _ground(rng, canvas, WATER, rng.uniform(0.5, 0.7), (215, 230, 240))


def _draw_street(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    canvas.polygon((170, 165, 160), box(-OUTSIDE, 0.2, OUTSIDE, OUTSIDE))
    for side in (-1, 1):
        for step in range(3):
            near, far = side * (1.3 - 0.42 * step), side * (0.9 - 0.34 * step)
            top, foot = rng.uniform(-1.1, -0.4) + 0.24 * step, 0.62 - 0.17 * step
            _building(rng, canvas, min(near, far), max(near, far), top, foot)
    canvas.polygon(jitter(rng, ROAD), [(-0.12, 0.14), (0.12, 0.14), (1.1, 1.4), (-1.1, 1.4)])
    canvas.line((235, 230, 200), 0.035, [(0, 0.2), (0, 1.4)])
    if rng.random() < 0.6:
        x = rng.choice((-0.4, 0.35))
        canvas.polygon(_fabric(rng), box(x - 0.16, 0.5, x + 0.16, 0.75))


def _draw_highway(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    horizon, at = rng.uniform(-0.25, 0.1), rng.uniform(-0.3, 0.3)
    _ground(rng, canvas, rng.choice((GRASS, (165, 150, 95))), horizon)
    canvas.polygon(jitter(rng, ROAD), [(at - 0.05, horizon), (at + 0.05, horizon), (1.5, 1.4), (-1.5, 1.4)])
    for lane in (-0.5, 0, 0.5):
        canvas.line((240, 240, 235), 0.03, [(at + lane * 0.05, horizon + 0.05), (lane * 1.6, 1.4)])
    if rng.random() < 0.5:
        _ridge(rng, canvas, (110, 130, 130), horizon + 0.02, 0.2, 3)


def _draw_skyscrapers(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    for _ in range(rng.randint(5, 8)):
        left = rng.uniform(-1.1, 0.8)
        _building(rng, canvas, left, left + rng.uniform(0.25, 0.45), rng.uniform(-0.95, 0.1), OUTSIDE)


def _draw_bridge(rng: Random, canvas: Canvas) -> None:
    _sky(rng, canvas)
    deck, steel = rng.uniform(-0.05, 0.2), jitter(rng, rng.choice(((180, 60, 45), (110, 110, 120), (205, 200, 190))))
    _ground(rng, canvas, WATER, deck + rng.uniform(0.1, 0.3))
    canvas.polygon(steel, box(-OUTSIDE, deck, OUTSIDE, deck + 0.08))
    top, towers = deck - rng.uniform(0.45, 0.7), (rng.uniform(-0.6, -0.4), rng.uniform(0.4, 0.6))
    for x in towers:
        canvas.polygon(steel, box(x - 0.05, top, x + 0.05, 1))
    cable = [
        (towers[0] + (towers[1] - towers[0]) * t / 8, deck - 0.05 + (top - deck) * (t / 4 - 1) ** 2) for t in range(9)
    ]
    canvas.line(steel, 0.035, [(-1.5, deck), *cable, (1.5, deck)])
    for x, y in cable:
        canvas.line(steel, 0.02, [(x, y), (x, deck)])


# Indoors


def _draw_bedroom(rng: Random, canvas: Canvas) -> None:
    foot, _ = _room(rng, canvas)
    x, half, cover = rng.uniform(-0.3, 0.3), rng.uniform(0.4, 0.55), _fabric(rng)
    canvas.polygon(jitter(rng, WOOD), box(x - half, foot - 0.4, x + half, foot + 0.1))
    canvas.polygon(cover, [(x - half, foot), (x + half, foot), (x + 1.3 * half, 1.0), (x - 1.3 * half, 1.0)])
    for side in (-1, 1):
        canvas.polygon((240, 240, 240), disc(x + side * half / 2, foot, 0.4 * half, 0.11))
    canvas.polygon(shade(cover, -0.3), box(x - 1.3 * half, 0.95, x + 1.3 * half, 1.3))


def _draw_living_room(rng: Random, canvas: Canvas) -> None:
    foot, _ = _room(rng, canvas)
    x, half, sofa = rng.uniform(-0.25, 0.25), rng.uniform(0.45, 0.6), _fabric(rng)
    canvas.polygon(_fabric(rng), disc(x, 0.85, 0.8, 0.25))
    canvas.polygon(sofa, box(x - half, foot - 0.25, x + half, foot + 0.3))
    canvas.polygon(shade(sofa, -0.25), box(x - half + 0.1, foot + 0.02, x + half - 0.1, foot + 0.3))
    for side in (-1, 1):
        canvas.polygon(shade(sofa, 0.15), box(x + side * half - 0.09, foot - 0.1, x + side * half + 0.09, foot + 0.32))
    canvas.polygon(jitter(rng, WOOD), box(x - 0.25, 0.78, x + 0.25, 0.88))


def _draw_kitchen(rng: Random, canvas: Canvas) -> None:
    foot, half = _room(rng, canvas)
    front = jitter(rng, rng.choice(((235, 235, 230), WOOD, (90, 120, 130))))
    for top, bottom in ((-0.75, -0.3), (0.0, foot + 0.25)):
        for step in range(5):
            left = -half + step * 2 * half / 5
            canvas.polygon(front, box(left, top, left + 0.37 * half, bottom))
    canvas.polygon((75, 75, 80), box(-half, -0.05, half, 0.02))
    x = rng.uniform(-0.5, 0.3)
    canvas.polygon((165, 170, 175), box(x, 0.02, x + 0.3, foot + 0.25))
    canvas.polygon((35, 35, 40), box(x + 0.05, 0.1, x + 0.25, foot + 0.1))


def _draw_bathroom(rng: Random, canvas: Canvas) -> None:
    foot, half = _room(rng, canvas)
    tile = jitter(rng, (170, 205, 215), 30)
    canvas.polygon(tile, box(-half, -0.3, half, foot))
    for step in range(1, 9):
        x = -half + step * half / 4.5
        canvas.line(shade(tile, 0.5), 0.02, [(x, -0.3), (x, foot)])
    for y in (-0.15, 0.0, 0.15):
        canvas.line(shade(tile, 0.5), 0.02, [(-half, y), (half, y)])
    side = rng.choice((-1, 1))
    canvas.polygon((245, 245, 245), box(-0.75 * side - 0.5, foot, -0.75 * side + 0.5, 0.75))
    canvas.polygon((215, 220, 225), disc(-0.75 * side, foot, 0.5, 0.1))
    canvas.polygon((245, 245, 245), disc(0.5 * side, 0.15, 0.22, 0.16, 0, 1))
    canvas.polygon((200, 220, 230), disc(0.5 * side, -0.35, 0.2, 0.25))


def _draw_office(rng: Random, canvas: Canvas) -> None:
    foot, _ = _room(rng, canvas)
    for x in (rng.uniform(-0.65, -0.45), rng.uniform(0.4, 0.6)):
        y, desk = foot + rng.uniform(0.05, 0.2), jitter(rng, WOOD)
        canvas.polygon((30, 30, 35), box(x - 0.2, y - 0.36, x + 0.2, y - 0.08))
        canvas.polygon((120, 170, 220), box(x - 0.17, y - 0.33, x + 0.17, y - 0.11))
        canvas.polygon(desk, box(x - 0.45, y, x + 0.45, y + 0.08))
        for leg in (-0.4, 0.4):
            canvas.line(shade(desk, -0.4), 0.04, [(x + leg, y), (x + leg, y + 0.45)])
        canvas.polygon((45, 50, 60), disc(x, y + 0.32, 0.16, 0.2))


def _draw_library(rng: Random, canvas: Canvas) -> None:
    _room(rng, canvas)
    shelf = jitter(rng, WOOD)
    canvas.polygon(shade(shelf, -0.4), box(-OUTSIDE, -0.85, OUTSIDE, 0.5))
    for row in range(4):
        top, x = -0.82 + 0.33 * row, -1.2
        while x < 1.2:
            width = rng.uniform(0.06, 0.13)
            if rng.random() < 0.85:
                canvas.polygon(
                    any_colour(rng, 40, 210), box(x, top + rng.uniform(0, 0.08), x + 0.85 * width, top + 0.28)
                )
            x += width
        canvas.polygon(shelf, box(-OUTSIDE, top + 0.28, OUTSIDE, top + 0.33))
    if rng.random() < 0.5:
        canvas.polygon(jitter(rng, WOOD), box(-0.5, 0.6, 0.5, 0.7))


def _draw_corridor(rng: Random, canvas: Canvas) -> None:
    wall, floor, at = jitter(rng, rng.choice(WALLS)), jitter(rng, (140, 130, 130), 40), rng.uniform(-0.2, 0.2)
    half = rng.uniform(0.14, 0.25)
    canvas.polygon(wall, box(-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE))
    canvas.polygon(shade(wall, 0.4), [(-OUTSIDE, -1.5), (OUTSIDE, -1.5), (at + half, -half), (at - half, -half)])
    canvas.polygon(floor, [(-OUTSIDE, 1.5), (OUTSIDE, 1.5), (at + half, half), (at - half, half)])
    canvas.polygon(shade(wall, -0.3), box(at - half, -half, at + half, half))
    door = jitter(rng, WOOD, 30)
    for side in (-1, 1):
        for near in (0.45, 0.8):
            far, x = near - 0.16, at + side * near
            canvas.polygon(door, [(x, -0.6 * near), (at + side * far, -0.6 * far), (at + side * far, far), (x, near)])
    for step in (0.4, 0.7, 1.1):
        canvas.polygon((250, 250, 235), box(at - 0.14 * step, -step, at + 0.14 * step, -step + 0.07))


SCENES: dict[str, Draw] = {
    "beach": _draw_beach,
    "lake": _draw_lake,
    "desert": _draw_desert,
    "snowfield": _draw_snowfield,
    "mountain": _draw_mountain,
    "forest": _draw_forest,
    "farm field": _draw_field,
    "waterfall": _draw_waterfall,
    "street": _draw_street,
    "highway": _draw_highway,
    "skyscrapers": _draw_skyscrapers,
    "bridge": _draw_bridge,
    "bedroom": _draw_bedroom,
    "living room": _draw_living_room,
    "kitchen": _draw_kitchen,
    "bathroom": _draw_bathroom,
    "office": _draw_office,
    "library": _draw_library,
    "corridor": _draw_corridor,
}


def draw_scene(rng: Random, name: str, look: Look) -> Image.Image:
    """A place; in a photo a part of it, aslant and with things in front."""
    canvas = Canvas((128, 128, 128))
    if look.plain:
        canvas.pose = Pose(mirror=rng.random() < 0.5)
    else:
        unit = rng.uniform(26, 56)
        x, y = (SIDE / 2 + rng.uniform(-0.4, 0.4) * unit for _ in "xy")
        canvas.pose = Pose(x, y, unit, rng.uniform(-0.06, 0.06), rng.random() < 0.5)
    SCENES[name](rng, canvas)
    return canvas.take(rng, look)
