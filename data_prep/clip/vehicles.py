"""The drawn Cars: vehicles from the side, told apart by their outline, their windows and what is mounted on them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from data_prep.clip.canvas import (
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
    shade,
)

TALL = 1.5  # as wide pictures are when they are made square: a vehicle fills more of the picture
GLASS, TYRE, METAL = (150, 185, 205), (30, 30, 32), (170, 170, 175)
PAINTS = ((200, 30, 35), (35, 70, 160), (240, 240, 240), (40, 40, 45), (150, 155, 160), (30, 110, 70), (230, 180, 40),
          (120, 80, 50))  # fmt: skip


@dataclass(frozen=True)
class Vehicle:
    """The outline from the side, the front on the left: -1 to 1 across, and heights above the ground.

    screen: x of the windscreen's foot and top; rear: x of the roof's end and of the rear window's foot; roof, belt,
    deck: heights of the roof, of the bonnet and of what is behind the rear window; floor: of the lowest edge; wheel:
    radius; front, back: ends; panes: side windows; parts: what is mounted, by the names of `PARTS`.
    """

    screen: tuple[float, float] = (-0.38, -0.12)
    rear: tuple[float, float] = (0.3, 0.6)
    roof: float = 0.62
    belt: float = 0.4
    deck: float = 0.42
    floor: float = 0.13
    wheel: float = 0.17
    front: float = -1.0
    back: float = 1.0
    panes: int = 2
    parts: tuple[str, ...] = ()


VEHICLES: dict[str, Vehicle] = {
    "sedan": Vehicle(),
    "hatchback": Vehicle((-0.4, -0.14), (0.5, 0.72), roof=0.66, front=-0.85, back=0.78),
    "station wagon": Vehicle(rear=(0.82, 0.96), panes=3),
    "coupe": Vehicle((-0.28, 0.02), (0.22, 0.78), roof=0.56, deck=0.4, panes=1),
    "convertible": Vehicle((-0.3, -0.1), roof=0.58, parts=("no roof",)),
    "sports car": Vehicle((-0.25, 0.08), (0.25, 0.7), 0.47, 0.3, 0.34, 0.08, panes=1, parts=("spoiler",)),
    "race car": Vehicle((-0.05, 0), (0.05, 0.1), 0.34, 0.2, 0.24, 0.06, 0.19, panes=0, parts=("spoiler", "nose")),
    "limousine": Vehicle((-0.55, -0.42), (0.6, 0.74), 0.5, 0.33, 0.34, 0.1, 0.13, panes=5),
    "pickup truck": Vehicle((-0.38, -0.18), (0.12, 0.16), 0.66, deck=0.42, panes=1, parts=("bed",)),
    "crew cab pickup": Vehicle((-0.44, -0.24), (0.4, 0.44), 0.66, deck=0.42, panes=2, parts=("bed",)),
    "off-road vehicle": Vehicle(
        (-0.4, -0.33), (0.78, 0.8), 0.78, 0.48, 0.48, 0.22, 0.21, -0.85, 0.82, parts=("spare wheel",)
    ),
    "minivan": Vehicle((-0.72, -0.3), (0.84, 0.96), 0.72, 0.42, 0.44, panes=3),
    "delivery van": Vehicle((-0.8, -0.48), (0.97, 1.0), 0.84, 0.46, 0.46, panes=1, parts=("panel",)),
    "minibus": Vehicle((-0.88, -0.7), (0.97, 1.0), 0.84, 0.46, 0.46, panes=5),
    "box truck": Vehicle((-0.92, -0.78), (-0.5, -0.48), 0.72, 0.44, 0.3, 0.16, panes=1, parts=("box",)),
    "camper van": Vehicle((-0.82, -0.56), (0.97, 1.0), 0.8, 0.44, 0.44, panes=2, parts=("alcove",)),
    "taxi": Vehicle(parts=("roof sign", "checks")),
    "police car": Vehicle(parts=("light bar", "white doors")),
    "ambulance": Vehicle((-0.8, -0.48), (0.97, 1.0), 0.84, 0.46, 0.46, panes=1, parts=("panel", "light bar", "cross")),
}


def draw_vehicle(rng: Random, name: str, look: Look) -> Image.Image:
    """A vehicle from the side; in a photo on a street, partly hidden, on the web large on an even ground."""
    vehicle = _vary(rng, VEHICLES[name])
    canvas = Canvas(jitter(rng, (228, 228, 228), 26) if look.plain else any_colour(rng, 80, 225))
    unit = rng.uniform(20, 23) if look.plain else rng.uniform(18, 22.5)
    x, y = SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + unit * 0.42 * TALL + rng.uniform(-4, 4)
    if not look.plain:
        _draw_street(rng, canvas, y)
    canvas.pose = Pose(x, y, unit, rng.uniform(-0.025, 0.025), rng.random() < 0.5, tall=TALL)
    _draw_body(rng, canvas, vehicle, jitter(rng, rng.choice(PAINTS), 25))
    return canvas.take(rng, look)


def _vary(rng: Random, vehicle: Vehicle) -> Vehicle:
    """Another make of the same kind: every measure is a little different."""

    def near(value: float) -> float:
        return value + rng.uniform(-0.035, 0.035)

    screen, rear = ((near(a), near(b)) for a, b in (vehicle.screen, vehicle.rear))
    heights = near(vehicle.roof), near(vehicle.belt), near(vehicle.deck)
    return Vehicle(
        screen, rear, *heights, vehicle.floor, vehicle.wheel, vehicle.front, vehicle.back, vehicle.panes, vehicle.parts
    )


def _draw_street(rng: Random, canvas: Canvas, ground: float) -> None:
    """Houses or trees behind, and the road; ground: y of the wheels, in pixels."""
    canvas.cover(any_colour(rng, 40, 220), clouds(rng, rng.randint(2, 6), 90, 170))
    horizon = (ground - rng.uniform(2, 9) - SIDE / 2) / (SIDE / 2)
    for _ in range(rng.randint(0, 4)):
        left = rng.uniform(-1.2, 0.9)
        canvas.polygon(any_colour(rng, 40, 210), box(left, rng.uniform(-1, -0.1), left + rng.uniform(0.2, 0.9), 1))
    canvas.polygon(jitter(rng, (125, 125, 128), 45), box(-1, horizon, 1, 1))


def _draw_body(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    if "panel" in car.parts and rng.random() < 0.6:
        paint = jitter(rng, (232, 232, 230), 20)
    canvas.polygon((70, 70, 72), disc(0, 0, 1, 0.07))  # the shadow
    hood = (car.front, -car.belt * 0.82)
    lower = [
        (car.front, -car.floor), hood, (car.front + 0.1, -car.belt), (car.screen[0], -car.belt - 0.02),
        (car.rear[1], -car.deck), (car.back, -car.deck * 0.92), (car.back, -car.floor),
    ]  # fmt: skip
    cabin = [
        (car.screen[0], -car.belt), (car.screen[1], -car.roof), (car.rear[0], -car.roof), (car.rear[1], -car.deck),
    ]  # fmt: skip
    if "no roof" in car.parts:
        canvas.line(TYRE, 0.05, cabin[:2])
        for x in (0.02, 0.36):
            canvas.polygon((60, 40, 35), box(x, -car.belt - 0.14, x + 0.1, -car.belt))
    else:
        canvas.polygon(paint, cabin)
        _draw_windows(rng, canvas, car)
    canvas.polygon(paint, lower)
    canvas.line(shade(paint, -0.35), 0.025, [(car.front, -car.floor - 0.1), (car.back, -car.floor - 0.1)])
    canvas.polygon((250, 240, 170), box(car.front, -car.belt * 0.8, car.front + 0.07, -car.belt * 0.6))
    canvas.polygon((190, 20, 20), box(car.back - 0.05, -car.deck * 0.9, car.back, -car.deck * 0.65))
    for part in car.parts:
        if part in PARTS:
            PARTS[part](rng, canvas, car, paint)
    for x in (car.front + 0.4, car.back - 0.38):
        canvas.polygon(TYRE, disc(x, -car.wheel * 0.85, car.wheel))
        canvas.polygon(METAL, disc(x, -car.wheel * 0.85, car.wheel * 0.5))


def _draw_windows(rng: Random, canvas: Canvas, car: Vehicle) -> None:
    """Panes between the posts, as far back as a panel van has them."""
    glass, top = jitter(rng, GLASS, 30), -car.roof + 0.05
    low_left, low_right = car.screen[0] + 0.06, car.rear[1] - 0.06
    left, right = car.screen[1] + 0.02, car.rear[0] - 0.02
    if {"panel", "alcove"} & set(car.parts):
        low_right = right = left + 0.28
    for pane in range(car.panes):
        start, end = pane / car.panes, (pane + 1) / car.panes - 0.1 / car.panes
        canvas.polygon(
            glass,
            [
                (low_left + start * (low_right - low_left), -car.belt - 0.02),
                (left + start * (right - left), top),
                (left + end * (right - left), top),
                (low_left + end * (low_right - low_left), -car.belt - 0.02),
            ],
        )


# What is mounted: functions of a random source, a canvas in the vehicle's frame, the vehicle and its paint


def _mount_spoiler(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.line(shade(paint, -0.3), 0.06, [(car.back - 0.16, -car.deck), (car.back - 0.1, -car.deck - 0.16)])
    canvas.line(shade(paint, -0.3), 0.06, [(car.back - 0.24, -car.deck - 0.16), (car.back, -car.deck - 0.18)])


def _mount_nose(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon(shade(paint, -0.3), box(car.front - 0.04, -0.16, car.front + 0.12, -0.05))
    canvas.polygon((240, 240, 240), disc(0.12, -0.36, 0.08))  # a helmet


def _mount_bed(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.line(shade(paint, -0.5), 0.05, [(car.rear[1] + 0.06, -car.deck), (car.back - 0.03, -car.deck + 0.02)])


def _mount_spare_wheel(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon(TYRE, box(car.back, -0.56, car.back + 0.09, -0.26))
    canvas.line(TYRE, 0.03, [(car.screen[1], -car.roof - 0.05), (car.rear[0], -car.roof - 0.05)])


def _mount_box(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon(jitter(rng, (225, 225, 220), 30), box(car.rear[1] + 0.06, -rng.uniform(0.82, 0.92), 1, -0.28))


def _mount_alcove(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon(jitter(rng, (235, 230, 220), 15), box(car.screen[1] - 0.2, -car.roof - 0.1, 1, -car.roof + 0.06))
    canvas.polygon(GLASS, box(0.2, -0.66, 0.42, -0.5))
    canvas.polygon((235, 150, 60), box(-0.3, -0.4, 1, -0.34))


def _mount_roof_sign(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon((250, 220, 80), box(-0.02, -car.roof - 0.12, 0.22, -car.roof))


def _mount_checks(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    for step in range(6):
        left = -0.5 + 0.2 * step
        canvas.polygon(TYRE, box(left, -0.34, left + 0.1, -0.27))


def _mount_light_bar(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    x = car.screen[1] + 0.1
    canvas.polygon((60, 100, 240), box(x, -car.roof - 0.1, x + 0.16, -car.roof))
    canvas.polygon(
        (60, 100, 240) if rng.random() < 0.5 else (230, 40, 40), box(x + 0.16, -car.roof - 0.1, x + 0.3, -car.roof)
    )


def _mount_white_doors(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    dark = sum(paint) < 480
    canvas.polygon((240, 240, 240) if dark else (30, 60, 130), box(-0.34, -car.belt, 0.42, -car.floor))


def _mount_cross(rng: Random, canvas: Canvas, car: Vehicle, paint: Colour) -> None:
    canvas.polygon((210, 30, 30), box(0.24, -0.7, 0.36, -0.34))
    canvas.polygon((210, 30, 30), box(0.12, -0.58, 0.48, -0.46))


PARTS = {
    "spoiler": _mount_spoiler,
    "nose": _mount_nose,
    "bed": _mount_bed,
    "spare wheel": _mount_spare_wheel,
    "box": _mount_box,
    "alcove": _mount_alcove,
    "roof sign": _mount_roof_sign,
    "checks": _mount_checks,
    "light bar": _mount_light_bar,
    "white doors": _mount_white_doors,
    "cross": _mount_cross,
}
