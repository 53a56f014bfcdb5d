"""Outlines that the mini benchmark draws, as polygons: eight shapes, eighteen icons and the letters of book titles."""

from __future__ import annotations

from math import cos, pi, sin

Points = tuple[tuple[float, float], ...]


def _disc(x: float, y: float, across: float, down: float | None = None, start: float = 0, end: float = 2) -> Points:
    """An ellipse as a polygon, or its arc from `start` to `end`, in units of pi, clockwise from the right."""
    down = across if down is None else down
    angles = [pi * (start + (end - start) * step / 24) for step in range(24 if end - start == 2 else 25)]
    return tuple((x + across * cos(angle), y + down * sin(angle)) for angle in angles)


def _rect(left: float, top: float, right: float, bottom: float) -> Points:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _star() -> Points:
    """A star of five points, stretched to fill the unit square."""
    raw = [
        ((1 if k % 2 == 0 else 0.42) * sin(pi * k / 5), -(1 if k % 2 == 0 else 0.42) * cos(pi * k / 5))
        for k in range(10)
    ]
    low, high = min(y for _, y in raw), max(y for _, y in raw)
    wide = max(x for x, _ in raw)
    return tuple((0.5 + x / wide / 2, (y - low) / (high - low)) for x, y in raw)


def _heart() -> Points:
    left, right = _disc(0.26, 0.28, 0.26, 0.28, 0.85, 2), _disc(0.74, 0.28, 0.26, 0.28, 1, 2.15)
    return (*left, *right, (0.5, 1.0))


def _moon() -> Points:
    outer = _disc(0.62, 0.5, 0.62, 0.5, 0.4, 1.6)
    inner = _disc(0.95, 0.5, 0.5, 0.36, 1.55, 0.45)
    return (*outer, *inner)


# Outlines in the unit square; a second one is a hole.
SHAPE_POINTS: dict[str, tuple[Points, ...]] = {
    "circle": (_disc(0.5, 0.5, 0.5),),
    "square": (_rect(0, 0, 1, 1),),
    "triangle": (((0.5, 0), (1, 1), (0, 1)),),
    "star": (_star(),),
    "heart": (_heart(),),
    "cross": (
        ((.33, 0), (.67, 0), (.67, .33), (1, .33), (1, .67), (.67, .67), (.67, 1), (.33, 1), (.33, .67), (0, .67),
         (0, .33), (.33, .33)),
    ),
    "moon": (_moon(),),
    "ring": (_disc(0.5, 0.5, 0.5), _disc(0.5, 0.5, 0.27)),
}  # fmt: skip


# (tone, outline) from back to front, on a grid of 24 x 24.
_ICONS: dict[str, list[tuple[str, Points]]] = {
    "bell": [
        ("dark", _disc(12, 3, 2)), ("dark", _disc(12, 20, 3)),
        ("ink", ((3, 19), (6, 14), (7, 8), (9, 5), (12, 4), (15, 5), (17, 8), (18, 14), (21, 19))),
    ],
    "boat": [
        ("dark", ((1, 15), (23, 15), (18, 22), (6, 22))), ("ink", ((11, 1), (11, 14), (3, 14))),
        ("light", ((13, 4), (13, 14), (21, 14))),
    ],
    "car": [
        ("light", ((5, 12), (9, 5), (16, 5), (20, 12))),
        ("ink", _rect(1, 11, 23, 18)),
        ("dark", _disc(6.5, 19, 3.2)),
        ("dark", _disc(17.5, 19, 3.2)),
    ],
    "cat": [
        ("ink", ((4, 13), (4, 1), (11, 7))),
        ("ink", ((20, 13), (20, 1), (13, 7))),
        ("ink", _disc(12, 14, 9, 8)),
        ("light", _disc(8.5, 13, 2)),
        ("light", _disc(15.5, 13, 2)),
        ("dark", ((10.5, 17), (13.5, 17), (12, 19))),
    ],
    "clock": [
        ("ink", _disc(12, 12, 11)), ("light", _disc(12, 12, 8.5)), ("dark", _rect(11, 5, 13, 13)),
        ("dark", _rect(11, 11, 17, 13)),
    ],
    "cup": [
        ("dark", _disc(17.5, 12, 5.5)),
        ("light", _disc(17.5, 12, 3)),
        ("ink", ((3, 4), (18, 4), (16, 22), (5, 22))),
    ],
    "fish": [
        ("dark", ((15, 12), (23, 4), (23, 20))),
        ("ink", _disc(9.5, 12, 9, 7)),
        ("light", _disc(5.5, 10.5, 1.7)),
    ],
    "flower": [
        ("dark", _rect(11, 14, 13, 24)),
        *(("ink", _disc(12 + 5.2 * cos(0.4 * pi * k), 8 + 5.2 * sin(0.4 * pi * k), 3.6)) for k in range(5)),
        ("light", _disc(12, 8, 3.2)),
    ],
    "hat": [
        ("ink", _rect(6, 3, 18, 18)), ("light", _rect(6, 12, 18, 16)), ("dark", _disc(12, 19, 12, 3)),
    ],
    "house": [
        ("ink", _rect(4, 11, 20, 23)),
        ("dark", ((1, 12), (12, 1), (23, 12))),
        ("light", _rect(10, 15, 15, 23)),
    ],
    "key": [
        ("dark", _rect(16, 13, 18, 18)),
        ("dark", _rect(20, 13, 22.5, 19)),
        ("ink", _rect(10, 10.3, 23, 13.7)),
        ("ink", _disc(6.5, 12, 6)), ("light", _disc(6.5, 12, 2.6)),
    ],
    "ladder": [
        *(("dark", _rect(7, y, 17, y + 2.4)) for y in (3, 8.5, 14, 19.5)), ("ink", _rect(4, 0, 7, 24)),
        ("ink", _rect(17, 0, 20, 24)),
    ],
    "lamp": [
        ("dark", _rect(11, 11, 13, 21)),
        ("ink", ((8, 1), (16, 1), (22, 12), (2, 12))),
        ("dark", _rect(6, 20, 18, 23)),
    ],
    "mushroom": [
        ("light", _rect(8.5, 11, 15.5, 23)),
        ("ink", _disc(12, 13, 11, 11, 1, 2)),
        ("light", _disc(8, 8, 1.8)),
        ("light", _disc(15, 7, 2.2)),
    ],
    "rocket": [
        ("light", ((9, 17), (15, 17), (12, 24))), ("dark", ((8, 10), (3, 20), (8, 18))),
        ("dark", ((16, 10), (21, 20), (16, 18))), ("ink", ((12, 0), (16, 6), (16, 18), (8, 18), (8, 6))),
        ("light", _disc(12, 9, 2.2)),
    ],
    "snowman": [
        ("ink", _disc(12, 17, 7)), ("light", _disc(12, 8, 4.8)), ("dark", _rect(8.5, 0, 15.5, 4.5)),
        ("dark", _rect(6.5, 3.5, 17.5, 5)),
    ],
    "tree": [("dark", _rect(10, 14, 14, 24)), ("ink", _disc(12, 8.5, 9.5, 8.5))],
    "umbrella": [
        ("dark", _rect(11, 11, 13, 22)),
        ("dark", _rect(13, 20, 17, 22)),
        ("ink", _disc(12, 12, 11.5, 10.5, 1, 2)),
    ],
}  # fmt: skip


# The icons in the unit square.
ICON_PARTS = {
    name: [(tone, tuple((x / 24, y / 24) for x, y in points)) for tone, points in parts]
    for name, parts in _ICONS.items()
}


# Rows of 5 x 7 cells, 1 for a filled one.
_GLYPH_ROWS = {
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 01010 01010 00100",
    "X": "10001 01010 00100 00100 00100 01010 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}


# The filled cells (column, row) of each letter on 5 x 7.
GLYPHS = {
    letter: tuple(
        (column, row) for row, line in enumerate(rows.split()) for column, cell in enumerate(line) if cell == "1"
    )
    for letter, rows in _GLYPH_ROWS.items()
}
