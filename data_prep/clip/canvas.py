"""Pictures of the label tasks with Pillow: drawn at four times the size, averaged down, then light, blur and noise.

Everything is a polygon, so that no font of the machine enters a picture; all chance comes from a `random.Random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 48
FINE = 4  # side of a pixel in drawn pixels
WIDE = SIDE * FINE

OUTSIDE = 1.7  # in a frame: where what leaves the picture ends, however the frame is turned

Colour = tuple[int, int, int]  # RGB
Point = tuple[float, float]
Points = Sequence[Point]


@dataclass(frozen=True)
class Look:
    """How a picture is taken.

    plain: on an even ground, without things that are not of its class. light: the most by which brightness varies,
    within a picture and between pictures. noise: the most that is added to a channel, of 255. blur: its largest radius
    in pixels. hidden: how often something lies in front of the class.
    """

    plain: bool
    light: float
    noise: int
    blur: float
    hidden: float


PHOTO = Look(plain=False, light=0.4, noise=28, blur=0.8, hidden=0.25)  # as the tasks take theirs
WEB = Look(plain=True, light=0.1, noise=10, blur=0.3, hidden=0.0)  # as most pictures with a caption are


@dataclass(frozen=True)
class Pose:
    """Where the frame of a drawing lies.

    x, y: its origin; unit: the length of 1, in pixels; turn: clockwise, in units of pi; mirror: left and right change
    places; lean: x that is added for each y (italics); tall: the factor of heights.
    """

    x: float = SIDE / 2
    y: float = SIDE / 2
    unit: float = SIDE / 2
    turn: float = 0.0
    mirror: bool = False
    lean: float = 0.0
    tall: float = 1.0

    def place(self, points: Points) -> list[Point]:
        """Points of the frame in drawn pixels."""
        side, cosine, sine = -1 if self.mirror else 1, cos(pi * self.turn), sin(pi * self.turn)
        scale = FINE * self.unit
        placed = []
        for across, high in points:
            down = self.tall * high
            right = side * (across + self.lean * down)
            placed.append(
                (
                    FINE * self.x + scale * (right * cosine - down * sine),
                    FINE * self.y + scale * (right * sine + down * cosine),
                )
            )
        return placed


def disc(x: float, y: float, across: float, down: float | None = None, start: float = 0, end: float = 2) -> list[Point]:
    """An ellipse as a polygon, or its arc from `start` to `end`, in units of pi, clockwise from the right."""
    down = across if down is None else down
    angles = [pi * (start + (end - start) * step / 20) for step in range(20 if end - start == 2 else 21)]
    return [(x + across * cos(angle), y + down * sin(angle)) for angle in angles]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle by its edges."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def mix(one: Colour, other: Colour, part: float) -> Colour:
    """The colour that lies `part` of the way from one to the other."""
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shade(colour: Colour, by: float) -> Colour:
    """A colour moved towards black (by < 0) or towards white (by > 0)."""
    return mix(colour, (255, 255, 255) if by > 0 else (0, 0, 0), abs(by))


def jitter(rng: Random, colour: Colour, by: int = 18) -> Colour:
    """A colour near another one."""
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def any_colour(rng: Random, low: int = 0, high: int = 255) -> Colour:
    """A colour with channels in a range."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


class Canvas:
    """A picture in the making, 192 drawn pixels a side. `pose` is the frame of what is drawn next."""

    def __init__(self, ground: Colour, pose: Pose | None = None):
        self.image = Image.new("RGB", (WIDE, WIDE), ground)
        self.pen = ImageDraw.Draw(self.image)
        self.pose = pose or Pose()

    def polygon(self, colour: Colour, points: Points) -> None:
        """Fill a polygon of the frame."""
        self.pen.polygon(self.pose.place(points), fill=colour)

    def line(self, colour: Colour, width: float, points: Points) -> None:
        """Draw a line of a width in units of the frame, with round corners and ends."""
        placed, thick = self.pose.place(points), max(1, round(width * self.pose.unit * FINE))
        self.pen.line(placed, fill=colour, width=thick)
        for x, y in placed if thick > 3 else ():
            half = thick / 2 - 0.5
            self.pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)

    def cover(self, colour: Colour, mask: Image.Image) -> None:
        """Lay a colour over the picture where a mask (L, any size) is white."""
        self.image.paste(colour, (0, 0), mask.resize((WIDE, WIDE), Image.Resampling.BILINEAR))

    def take(self, rng: Random, look: Look) -> Image.Image:
        """The finished picture, RGB, 48 x 48, as a look takes it."""
        if rng.random() < look.hidden:
            _draw_in_front(rng, self)
        return spoil(rng, self.image.reduce(FINE), look)


def _draw_in_front(rng: Random, canvas: Canvas) -> None:
    """A pole, or something large that reaches in from an edge."""
    colour, edge = any_colour(rng, 20, 200), rng.randrange(4) / 2
    canvas.pose = Pose(turn=edge + rng.uniform(-0.1, 0.1))
    if rng.random() < 0.5:
        at, half = rng.uniform(-0.8, 0.8), rng.uniform(0.03, 0.08)
        canvas.polygon(colour, box(at - half, -1.5, at + half, rng.choice((-0.2, 1.5))))
    else:
        reach = rng.uniform(0.1, 0.32)
        canvas.polygon(colour, disc(rng.uniform(-0.9, 0.9), 1.0, rng.uniform(0.2, 0.5), reach))


@lru_cache(2048)
def _ramp(start: int, end: int) -> tuple[int, ...]:
    """A table for `Image.point` that goes from `start` at 0 to `end` at 255, within 0 to 255."""
    return tuple(max(0, min(255, start + value * (end - start) // 255)) for value in range(256))


@lru_cache
def _steepen(low: int, high: int) -> tuple[int, ...]:
    """A table for `Image.point` that is 0 up to `low` and 255 from `high` on."""
    return tuple(max(0, min(255, (value - low) * 255 // (high - low))) for value in range(256))


def clouds(rng: Random, cells: int, low: int = 0, high: int = 255, down: int | None = None) -> Image.Image:
    """A smooth random mask (L, 48 x 48) of about `cells` x `down` patches; below `low` it is black, above `high` white.

    `down` is as `cells` unless given.
    """
    size = (cells, down or cells)
    mask = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return mask.point(_steepen(low, high))


def spoil(rng: Random, image: Image.Image, look: Look) -> Image.Image:
    """Give a picture (RGB, 48 x 48) the light, the blur and the noise of a look."""
    shadow = clouds(rng, 2).point(_ramp(255 - int(255 * look.light * rng.random()), 255))
    image = ImageChops.multiply(image, Image.merge("RGB", (shadow, shadow, shadow)))
    gain = 255 * (1 + look.light * rng.uniform(-0.7, 0.7))
    tint = [_ramp(0, int(gain * rng.uniform(1 - look.light / 5, 1))) for _ in "RGB"]
    image = image.point([value for channel in tint for value in channel])
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, look.blur)))
    most = rng.randint(look.noise // 4, look.noise)
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * SIDE * SIDE))
    return ImageChops.add(image, noise.point(_ramp(0, most) * 3), 1, -(most // 2))
