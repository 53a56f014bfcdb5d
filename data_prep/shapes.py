"""An example of a task of your own: yes-or-no questions on drawn shapes, as question files and pictures in a folder.

    python -m data_prep.shapes data/shapes

Writes train.json, test.json and images/; what to do with them: docs/tasks.md. No task of the mini benchmark has such
questions or such pictures: two or three shapes of other tints on a plain ground, 96 pixels wide.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

SIDE = 96
FINE = 4  # side of a pixel in drawn pixels
COUNTS = {"train": 2000, "test": 500}
ANSWERS = ("yes", "no")  # in turn, so that one answer to all questions is right half of the time
COLOURS = {
    "red": (196, 30, 58),
    "green": (80, 180, 110),
    "blue": (70, 120, 235),
    "yellow": (250, 220, 90),
    "orange": (235, 110, 20),
    "purple": (150, 90, 200),
}
GROUNDS = ((255, 255, 255), (225, 225, 225), (60, 60, 60), (205, 225, 235), (240, 228, 205))
SHAPES = {  # corners as (angle, distance from the middle), in units of pi and of the radius
    "circle": [(step / 24, 1.0) for step in range(48)],
    "square": [(0.25 + step / 2, 1.0) for step in range(4)],
    "triangle": [(-0.5 + step * 2 / 3, 1.0) for step in range(3)],
    "star": [(-0.5 + step / 5, 0.42 if step % 2 else 1.0) for step in range(10)],
}


@dataclass(frozen=True)
class Shape:
    """A shape in a picture. x, y, radius: in pixels; turn: in units of pi."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float

    def corners(self) -> list[tuple[float, float]]:
        """Its corners in drawn pixels."""
        polar = [(pi * (angle + self.turn), FINE * self.radius * distance) for angle, distance in SHAPES[self.kind]]
        return [(FINE * self.x + far * cos(angle), FINE * self.y + far * sin(angle)) for angle, far in polar]


def sample_shapes(rng: Random) -> list[Shape]:
    """Two or three shapes that do not touch."""
    shapes: list[Shape] = []
    wanted = rng.choice((2, 3))
    while len(shapes) < wanted:
        radius = rng.uniform(13, 19)
        x, y = (rng.uniform(radius, SIDE - radius) for _ in "xy")
        if all(hypot(x - one.x, y - one.y) > radius + one.radius for one in shapes):
            kind, colour = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
            shapes.append(Shape(kind, colour, x, y, radius, rng.uniform(-0.06, 0.06)))
    return shapes


def draw(shapes: list[Shape], ground: tuple[int, int, int]) -> Image.Image:
    """The picture, averaged down from `FINE` times its size."""
    picture = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
    canvas = ImageDraw.Draw(picture)
    for shape in shapes:
        canvas.polygon(shape.corners(), fill=COLOURS[shape.colour])
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def list_questions(shapes: list[Shape]) -> list[dict[str, str]]:
    """Questions with their answers, by form: of a shape, of a colour, of both in one, and of the colour of a shape."""
    kinds, colours = [one.kind for one in shapes], {one.colour for one in shapes}
    pairs = {(one.colour, one.kind) for one in shapes}

    def answer(is_so: bool) -> str:
        return ANSWERS[not is_so]

    return [
        {f"Is there a {kind}?": answer(kind in kinds) for kind in SHAPES},
        {f"Is there anything {colour}?": answer(colour in colours) for colour in COLOURS},
        {
            f"Is there {'an' if colour == 'orange' else 'a'} {colour} {kind}?": answer((colour, kind) in pairs)
            for kind in SHAPES
            for colour in COLOURS
        },
        {
            f"Is the {kind} {colour}?": answer((colour, kind) in pairs)
            for kind in SHAPES
            if kinds.count(kind) == 1
            for colour in COLOURS
        },
    ]


def ask(rng: Random, shapes: list[Shape], answer: str) -> str:
    """A question on these shapes that has the answer; each form is as likely as another."""
    forms = [[text for text, right in form.items() if right == answer] for form in list_questions(shapes)]
    return rng.choice(rng.choice([texts for texts in forms if texts]))


def write_task(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """Write question files and pictures; the same bytes every time."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        questions = []
        for index in range(count):
            rng, answer = Random(f"shapes/{split}/{index}"), ANSWERS[index % 2]
            shapes, image = sample_shapes(rng), f"images/{split}_{index:04d}.png"
            draw(shapes, rng.choice(GROUNDS)).save(folder / image)
            text = ask(rng, shapes, answer)
            questions.append({"question_id": f"{split}-{index}", "image": image, "text": text, "answer": answer})
        (folder / f"{split}.json").write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_task(Path(sys.argv[1]))
