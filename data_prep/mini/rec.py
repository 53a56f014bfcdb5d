"""Referring expressions: a box as text, in the published format."""

from __future__ import annotations

from random import Random

from data_prep.scenes import SIDE, Scene, sample_object

DESCRIPTIONS = ("the {colour} {shape}", "the {size} {shape}", "the {colour} {shape} made of {material}",
                "the {size} {colour} object")  # fmt: skip


def make_rec(rng: Random) -> tuple[Scene, dict]:
    """REC: left, top, right, bottom as fractions of the square's side, two decimals: "[0.25,0.50,0.42,0.75]"."""
    scene = sample_object(rng)
    words = {name: getattr(scene, name) for name in ("colour", "shape", "size", "material")}
    answer = "[" + ",".join(f"{edge / SIDE:.2f}" for edge in scene.box) + "]"
    return scene, {"text": rng.choice(DESCRIPTIONS).format(**words), "answer": answer, "size": (SIDE, SIDE)}
