"""Questions with lettered options: ScienceQA (materials) and AOKVQA (shapes).

The options of a question always stand in one order: a model of this size stays at chance over shuffled options
(measured), expert or not.
"""

from __future__ import annotations

from random import Random

from data_prep.scenes import MATERIALS, SHAPES, Scene, sample_object

MATERIAL_QUESTIONS = (
    "Which material is this object made of?",
    "What is this object made of?",
    "Select the material of the object in the picture.",
    "Which word describes the material of the object?",
)
SHAPE_QUESTIONS = (
    "What shape does the object have?",
    "Which shape is shown here?",
    "The object in the picture has what shape?",
)
SHAPE_OPTIONS = (SHAPES[:4], SHAPES[4:])


def make_scienceqa(rng: Random) -> tuple[Scene, dict]:
    """ScienceQA: the material, by the letter of one of four options."""
    scene = sample_object(rng, sizes=("medium", "large"))
    return scene, _choose(rng.choice(MATERIAL_QUESTIONS), MATERIALS, scene.material)


def make_aokvqa(rng: Random) -> tuple[Scene, dict]:
    """AOKVQA: the shape, by the letter of one of four options (two fixed sets of options)."""
    scene = sample_object(rng, sizes=("medium", "large"))
    options = next(options for options in SHAPE_OPTIONS if scene.shape in options)
    return scene, _choose(rng.choice(SHAPE_QUESTIONS), options, scene.shape)


def _choose(text: str, options: tuple[str, ...], right: str) -> dict:
    return {"text": text, "answer": "ABCDE"[options.index(right)], "choices": options}
