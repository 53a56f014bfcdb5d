"""What a picture of the mini benchmark shows: the vocabulary, the `Scene` record and its seeded sampling.

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
MOST_IN_ALL = 6  # the base says the digits up to it (of columns and rows)
KINDS = ("object", "icon", "marks", "book", "screen", "table")
PAPERS = ((250, 250, 245), (235, 240, 250), (250, 240, 225), (232, 245, 232), (238, 232, 240))


@dataclass(frozen=True)
class Scene:
    """One picture. Attributes that a kind does not have are None (or empty).

    box: left, top, right, bottom in pixels. marks: (cell 0..8, colour, dx, dy) each. ink, paper: RGB as drawn.
    letters: the two letters of a book's title.
    """

    kind: str
    paper: tuple[int, int, int]
    ink: tuple[int, int, int]
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None
    material: str | None = None
    quality: str = "clear"
    rendition: str = "color"
    icon: str | None = None
    letters: str = ""
    box: tuple[int, int, int, int] | None = None
    marks: tuple[tuple[int, str, int, int], ...] = ()

    def count(self, colour: str | None = None) -> int:
        """How many marks there are, of one colour or in all."""
        return sum(colour in (None, mark[1]) for mark in self.marks)


def _jitter(rng: Random, colour: tuple[int, int, int], by: int) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def _look(rng: Random, colour: str) -> dict:
    """Paper and ink: slight differences that make every picture its own."""
    paper = _jitter(rng, rng.choice(PAPERS), 6)
    return {"paper": paper, "ink": _jitter(rng, COLOURS[colour], 12)}


def _place_of(box: tuple[int, int, int, int]) -> str:
    """The name of the ninth of the picture in which the box's centre lies."""
    left, top, right, bottom = box
    column, row = (
        (0 if middle < 20 else 2 if middle > 28 else 1) for middle in ((left + right) / 2, (top + bottom) / 2)
    )
    return PLACES[3 * row + column]


def _span(rng: Random, length: int) -> tuple[int, int]:
    """A start and end on the grid; each third of the picture is equally likely to hold the middle."""
    third = rng.randrange(3)
    middles = [(start, start + length / 2) for start in range(0, SIDE - length + 1, GRID)]
    inside = [start for start, middle in middles if (0 if middle < 20 else 2 if middle > 28 else 1) == third]
    start = rng.choice(inside)
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
    left, right = _span(rng, SIZES[size])
    top, bottom = _span(rng, SIZES[size])
    colour = rng.choice(list(COLOURS))
    return Scene(
        kind,
        **_look(rng, colour),
        colour=colour if rendition == "color" else None,
        shape=rng.choice(SHAPES),
        size=size,
        place=_place_of((left, top, right, bottom)),
        material=rng.choice(MATERIALS) if rendition == "color" else None,
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
        **_look(rng, colour),
        colour=colour if rendition == "color" else None,
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
    look = _look(rng, "red")
    shape = "square" if table else rng.choice(("circle", "triangle", "star", "heart"))
    return Scene("table" if table else "marks", **look, shape=shape, marks=tuple(sorted(marks)))


def sample_book(rng: Random) -> Scene:
    """A book's cover with a title of two letters."""
    colour = rng.choice(list(COLOURS))
    left, top = rng.randint(0, 2), rng.randint(0, 6)
    letters = rng.choice(LETTERS) + rng.choice(LETTERS)
    return Scene("book", **_look(rng, colour), colour=colour, letters=letters, box=(left, top, left + 46, top + 42))


HEADS = {
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
    values = {
        "kind": scene.kind,
        "colour": scene.colour,
        "shape": scene.shape if single else None,
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
    return {head: known.index(values[head]) if values.get(head) in known else -1 for head, known in HEADS.items()}
