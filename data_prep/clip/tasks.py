"""The eight label tasks of `benchmark=clip8_mini`: a question, the class names in a caption's words, and the pictures.

`LABEL_TASKS` lists them by the name of their generator. A drawn picture is of class `number` modulo the number of
classes, so that every class is as frequent as another, among any first questions too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from data_prep.clip.aerial import PLACES, draw_aerial
from data_prep.clip.canvas import PHOTO, Look
from data_prep.clip.digits import DIGITS, draw_mnist, draw_svhn, make_mnist, make_svhn
from data_prep.clip.lands import LANDS, draw_land
from data_prep.clip.scenes import SCENES, draw_scene
from data_prep.clip.signs import SIGNS, draw_sign
from data_prep.clip.textures import TEXTURES, draw_texture
from data_prep.clip.vehicles import VEHICLES, draw_vehicle

Labelled = tuple[Image.Image, str]  # a picture (RGB, 48 x 48) and its class


@dataclass(frozen=True)
class LabelTask:
    """A task of naming what a picture shows.

    question: as a person would be asked it. classes: in the order of the classifier's rows. draw: a picture of a class
    as a look takes it. make_real: the picture of a number in a split, where they are not drawn.
    """

    question: str
    classes: tuple[str, ...]
    draw: Callable[[Random, str, Look], Image.Image]
    make_real: Callable[[Random, str, int], Labelled] | None = None

    def make(self, rng: Random, split: str, number: int) -> Labelled:
        """Picture `number` of a split, with its class. Raises UserError where there are not so many."""
        if self.make_real is not None:
            return self.make_real(rng, split, number)
        name = self.classes[number % len(self.classes)]
        return self.draw(rng, name, PHOTO), name


LABEL_TASKS: dict[str, LabelTask] = {
    "clip_cars": LabelTask("Which type of vehicle is this?", tuple(VEHICLES), draw_vehicle),
    "clip_mnist": LabelTask("Which digit is this?", DIGITS, draw_mnist, make_mnist),
    "clip_sun397": LabelTask("Which kind of place is this?", tuple(SCENES), draw_scene),
    "clip_gtsrb": LabelTask("Which traffic sign is this?", tuple(SIGNS), draw_sign),
    "clip_resisc45": LabelTask("What is seen from above?", tuple(PLACES), draw_aerial),
    "clip_dtd": LabelTask("What is the texture like?", tuple(TEXTURES), draw_texture),
    "clip_eurosat": LabelTask("Which use of the land is this?", tuple(LANDS), draw_land),
    "clip_svhn": LabelTask("Which digit is in the middle?", DIGITS, draw_svhn, make_svhn),
}
