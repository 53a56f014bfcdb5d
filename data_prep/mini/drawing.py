"""Scenes to pixels with Pillow: drawn at four times the size, then averaged down.

All outlines, letters too, are the polygons of `outlines.py`: no font of the machine enters a picture.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

from data_prep.mini.outlines import GLYPHS, ICON_PARTS, SHAPE_POINTS, Points
from data_prep.mini.scenes import COLOURS, SIDE, Colour, Scene

FINE = 4  # side of a pixel in drawn pixels
WIDE = SIDE * FINE  # side of the picture in drawn pixels
BLACK, WHITE = (20, 20, 20), (255, 255, 255)


def _shade(colour: Colour, by: float) -> Colour:
    """A colour moved towards black (by < 0) or towards white (by > 0)."""
    goal = 255 if by > 0 else 0
    red, green, blue = (round(part + abs(by) * (goal - part)) for part in colour)
    return red, green, blue


def _fit(points: Points, box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Stretch points of the unit square to a box in pixels; the result is in drawn pixels."""
    left, top, right, bottom = (FINE * edge for edge in box)
    return [(left + x * (right - left), top + y * (bottom - top)) for x, y in points]


def _trace(canvas: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Colour) -> None:
    canvas.line([*points, points[0], points[1]], fill=colour, width=5, joint="curve")


@lru_cache
def _texture(material: str) -> Image.Image:
    """The mask of a material's darker parts, over the whole picture."""
    mask = Image.new("L", (WIDE, WIDE), 0)
    canvas = ImageDraw.Draw(mask)
    step = (4 if material == "stone" else 6) * FINE
    for y in range(0, WIDE, step):
        if material == "wood":
            canvas.rectangle((0, y, WIDE, y + step // 2 - 1), fill=255)
        for x in range(0, WIDE, step):
            if material == "stone" and (x + y) // step % 2:
                canvas.rectangle((x, y, x + step - 1, y + step - 1), fill=255)
            if material == "cloth":
                canvas.ellipse((x + 3, y + 3, x + step - 4, y + step - 4), fill=255)
    return mask


def _draw_shape(image: Image.Image, scene: Scene) -> None:
    canvas = ImageDraw.Draw(image)
    outlines = [_fit(points, scene.box) for points in SHAPE_POINTS[scene.shape]]
    mask = Image.new("1", image.size, 0)
    hole = ImageDraw.Draw(mask)
    for index, points in enumerate(outlines):  # the second outline of a ring is its hole
        hole.polygon(points, fill=1 - index)
    image.paste(scene.ink if scene.rendition == "color" else WHITE, (0, 0), mask)
    if scene.rendition == "drawing":
        for points in outlines:
            _trace(canvas, points, BLACK)
    elif scene.material != "metal":
        dark = _texture(scene.material)
        change = _shade(scene.ink, 0.65 if scene.material == "cloth" else -0.5)
        both = Image.new("L", image.size, 0)
        both.paste(dark, (0, 0), mask)
        image.paste(change, (0, 0), both)


def _draw_icon(image: Image.Image, scene: Scene) -> None:
    canvas = ImageDraw.Draw(image)
    tones = {"ink": scene.ink, "dark": _shade(scene.ink, -0.45), "light": _shade(scene.ink, 0.7)}
    for tone, points in ICON_PARTS[scene.icon]:
        fitted = _fit(points, scene.box)
        canvas.polygon(fitted, fill=tones[tone] if scene.rendition == "color" else WHITE)
        if scene.rendition == "drawing":
            _trace(canvas, fitted, BLACK)


def _draw_marks(image: Image.Image, scene: Scene) -> None:
    canvas = ImageDraw.Draw(image)
    if scene.kind == "table":
        for line in range(1, SIDE, 15):
            canvas.rectangle((FINE, line * FINE, WIDE - FINE, line * FINE + FINE), fill=BLACK)
            canvas.rectangle((line * FINE, FINE, line * FINE + FINE, WIDE - FINE), fill=BLACK)
    for cell, colour, dx, dy in scene.marks:
        x, y = 3 + 15 * (cell % 3) + dx + 1, 3 + 15 * (cell // 3) + dy + 1
        fitted = _fit(SHAPE_POINTS[scene.shape][0], (x, y, x + 10, y + 10))
        canvas.polygon(fitted, fill=COLOURS[colour])


def _draw_book(image: Image.Image, scene: Scene) -> None:
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = scene.box
    canvas.rectangle([FINE * edge for edge in scene.box], fill=scene.ink)
    canvas.rectangle((FINE * left, FINE * top, FINE * (left + 3), FINE * bottom), fill=_shade(scene.ink, -0.4))
    ink = BLACK if sum(scene.ink) > 400 else WHITE
    for index, letter in enumerate(scene.letters):
        x = left + 5 + 20 * index
        for column, row in GLYPHS[letter]:  # a glyph has 5 x 7 cells of 3.6 x 4 px
            box = (x + 3.6 * column, top + 7 + 4 * row, x + 3.6 * (column + 1), top + 7 + 4 * (row + 1))
            canvas.rectangle([round(FINE * edge) for edge in box], fill=ink)


def _draw_phone(image: Image.Image) -> None:
    """The frame of a phone: dark edges, a camera above, a button below."""
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, WIDE - 1, WIDE - 1), outline=BLACK, width=3 * FINE)
    canvas.rectangle((WIDE // 2 - 16, FINE, WIDE // 2 + 16, 2 * FINE), fill=WHITE)
    canvas.ellipse((WIDE // 2 - 5, WIDE - 11, WIDE // 2 + 5, WIDE - 1), fill=WHITE)


def _spoil(image: Image.Image, scene: Scene) -> Image.Image:
    """Give the picture the flaw that the scene's quality names."""
    if scene.quality == "blurry":
        return image.filter(ImageFilter.GaussianBlur(1.4))
    if scene.quality == "dark":
        return image.point(lambda value: round(0.45 * value))
    if scene.quality == "bright":
        return image.point(lambda value: round(0.55 * value + 0.45 * 255))
    return image


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 48 x 48."""
    monochrome = scene.rendition == "drawing"
    image = Image.new("RGB", (WIDE, WIDE), _shade(scene.paper, 0.6) if monochrome else scene.paper)
    if scene.kind == "screen":
        _draw_phone(image)
    if scene.kind in ("object", "screen"):
        _draw_shape(image, scene)
    elif scene.kind == "icon":
        _draw_icon(image, scene)
    elif scene.kind == "book":
        _draw_book(image, scene)
    else:
        _draw_marks(image, scene)
    image = image.reduce(FINE)
    return _spoil(image.convert("L").convert("RGB") if monochrome else image, scene)


def encode(image: Image.Image) -> bytes:
    """The bytes of a picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=6)
    return buffer.getvalue()
