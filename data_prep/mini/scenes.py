"""The content of the mini benchmark's pictures: the vocabulary, the `Scene` record and its seeded sampling.

A scene holds everything that drawing needs, so `drawing.draw(scene)` is a pure function. Pictures are 48 px wide;
boxes lie on a grid of 8 px. A picture shows one object, or one grid of marks: small models do not learn to tell
several objects apart (measured), and a base that cannot see makes every expert equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SIDE = 48
GRID = 8

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 205),
    "yellow": (238, 200, 30),
    "purple": (130, 50, 160),
    "orange": (240, 130, 30),
    "pink": (240, 130, 180),
    "brown": (120, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
SIZES = {"small": 16, "medium": 24, "large": 32}  # side in pixels
PLACES = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
MATERIALS = ("cloth", "metal", "stone", "wood")  # drawn as dots, plain, checks, stripes
QUALITIES = ("clear", "blurry", "dark", "bright")
RENDITIONS = ("color", "drawing")
ICONS = (
    "bell", "boat", "car", "cat", "clock", "cup", "fish", "flower", "hat", "house", "key", "ladder", "lamp",
    "mushroom", "rocket", "snowman", "tree", "umbrella",
)  # fmt: skip
LETTERS = "FHJKLMOPRSTUVXZ"  # no two look alike at this size, none is the letter of an option
MARKS = ("red", "blue")
MOST_MARKS = 4  # of one colour
MOST_IN_ALL = 6  # of both colours: the small base says no higher digit (of columns and rows)
KINDS = ("object", "icon", "marks", "book", "screen", "table")
PAPERS = ((250, 250, 245), (235, 240, 250), (250, 240, 225), (232, 245, 232), (238, 232, 240))


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Colour = tuple[int, int, int]  # RGB


@dataclass(frozen=True)
class Scene:
    """One picture. Attributes that a kind does not have are empty.

    paper, ink: colours as drawn. marks: (cell 0..8, colour, dx, dy) each. letters: the two of a book's title.
    """

    kind: str
    paper: Colour
    ink: Colour
    colour: str = ""
    shape: str = ""
    size: str = ""
    place: str = ""
    material: str = ""
    quality: str = "clear"
    rendition: str = "color"
    icon: str = ""
    letters: str = ""
    box: Box = (0, 0, 0, 0)
    marks: tuple[tuple[int, str, int, int], ...] = ()

    def count(self, colour: str | None = None) -> int:
        """How many marks there are, of one colour or in all."""
        return sum(colour in (None, mark[1]) for mark in self.marks)


def _jitter(rng: Random, colour: Colour, by: int) -> Colour:
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def _sample_tints(rng: Random, colour: str) -> tuple[Colour, Colour]:
    """Paper and ink, with slight differences that make every picture unique."""
    paper = _jitter(rng, rng.choice(PAPERS), 6)
    return paper, _jitter(rng, COLOURS[colour], 12)


def _third(middle: float) -> int:
    """The third of the picture's side that a coordinate lies in; the middle third is 20 to 28."""
    return 0 if middle < 20 else 2 if middle > 28 else 1


def _name_place(box: Box) -> str:
    """The name of the ninth of the picture in which the box's centre lies."""
    left, top, right, bottom = box
    return PLACES[3 * _third((top + bottom) / 2) + _third((left + right) / 2)]


def _sample_span(rng: Random, length: int) -> tuple[int, int]:
    """A start and end on the grid; each third of the picture is equally likely to hold the middle."""
    third = rng.randrange(3)
    start = rng.choice([start for start in range(0, SIDE - length + 1, GRID) if _third(start + length / 2) == third])
    return start, start + length


def sample_object(
    rng: Random,
    sizes: tuple[str, ...] = tuple(SIZES),
    qualities: tuple[str, ...] = QUALITIES[:1],
    kind: str = "object",
    rendition: str = "color",
) -> Scene:
    """One shape on paper (kind "object") or on a phone's screen (kind "screen")."""
    size = rng.choice(sizes)
    left, right = _sample_span(rng, SIZES[size])
    top, bottom = _sample_span(rng, SIZES[size])
    colour = rng.choice(list(COLOURS))
    return Scene(
        kind,
        *_sample_tints(rng, colour),
        colour=colour if rendition == "color" else "",
        shape=rng.choice(SHAPES),
        size=size,
        place=_name_place((left, top, right, bottom)),
        material=rng.choice(MATERIALS) if rendition == "color" else "",
        quality=rng.choice(qualities),
        rendition=rendition,
        box=(left, top, right, bottom),
    )


def sample_icon(rng: Random, rendition: str) -> Scene:
    """One of the eighteen classes, in colour or as a black-and-white drawing."""
    colour = rng.choice(list(COLOURS))
    side = rng.randint(32, 42)
    left, top = rng.randint(2, SIDE - 2 - side), rng.randint(2, SIDE - 2 - side)
    return Scene(
        "icon",
        *_sample_tints(rng, colour),
        colour=colour if rendition == "color" else "",
        rendition=rendition,
        icon=rng.choice(ICONS),
        box=(left, top, left + side, top + side),
    )


def sample_marks(rng: Random, table: bool = False) -> Scene:
    """Red and blue marks, at most six in all: loose icons, or the cells of a table."""
    red = rng.randint(0, MOST_MARKS)
    blue = rng.randint(0 if red else 1, min(MOST_MARKS, MOST_IN_ALL - red))
    cells = rng.sample(range(9), red + blue)
    shake = 0 if table else 1
    marks = tuple(
        (cell, "red" if index < red else "blue", rng.randint(-shake, shake), rng.randint(-shake, shake))
        for index, cell in enumerate(cells)
    )
    tints = _sample_tints(rng, "red")
    shape = "square" if table else rng.choice(("circle", "triangle", "star", "heart"))
    return Scene("table" if table else "marks", *tints, shape=shape, marks=tuple(sorted(marks)))


def sample_book(rng: Random) -> Scene:
    """A book's cover with a title of two letters."""
    colour = rng.choice(list(COLOURS))
    left, top = rng.randint(0, 2), rng.randint(0, 6)
    letters = rng.choice(LETTERS) + rng.choice(LETTERS)
    return Scene(
        "book", *_sample_tints(rng, colour), colour=colour, letters=letters, box=(left, top, left + 46, top + 42)
    )


# The attributes that a picture is labelled with, and the classes of each.
HEADS: dict[str, tuple] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": PLACES,
    "material": MATERIALS,
    "quality": QUALITIES,
    "rendition": RENDITIONS,
    "icon": ICONS,
    "count": tuple(range(1, MOST_IN_ALL + 1)),
    "red": tuple(range(MOST_MARKS + 1)),
    "blue": tuple(range(MOST_MARKS + 1)),
    "letter_1": tuple(LETTERS),
    "letter_2": tuple(LETTERS),
    **{edge: tuple(range(0, SIDE + 1, GRID)) for edge in ("left", "top", "right", "bottom")},
}


def label(scene: Scene) -> dict[str, int]:
    """The index of the scene's value for every head; -1 where the attribute does not apply."""
    single = scene.kind in ("object", "screen")
    values: dict[str, str | int] = {
        "kind": scene.kind,
        "colour": scene.colour,
        "shape": scene.shape if single else "",
        "size": scene.size,
        "place": scene.place,
        "material": scene.material,
        "quality": scene.quality,
        "rendition": scene.rendition,
        "icon": scene.icon,
        "letter_1": scene.letters[:1],
        "letter_2": scene.letters[1:],
    }
    if scene.marks:
        values |= {"count": scene.count(), "red": scene.count("red"), "blue": scene.count("blue")}
    if single:
        values |= dict(zip(("left", "top", "right", "bottom"), scene.box, strict=True))
    return {head: classes.index(values[head]) if values.get(head) in classes else -1 for head, classes in HEADS.items()}
