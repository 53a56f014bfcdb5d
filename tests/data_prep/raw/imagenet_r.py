"""ImageNet-R in the owners' layout: a README that lists the classes, and a folder of pictures for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data_prep.raw.drawn import pack, place
from tests.data_prep.raw.wordings import SHORT

README = """ImageNet-R(endition) has art, cartoons and other renditions of 200 ImageNet classes.

n01443537 goldfish
n01484850 great_white_shark
"""
PICTURES = ("n01443537/art_1.jpg", "n01443537/videogame_0.jpg", "n01484850/art_1.jpg", "n09999999/sketch_2.jpg")
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "test": {
        "n01443537/art_1": {
            "text": f"What is the object in the image?\n{SHORT}",
            "answer": "goldfish",
            "image": "images/ImageNet-R/n01443537/art_1.jpg",
            "category": "art",
            "details": {"question_id": "art_1.jpg", "wnid": "n01443537"},
        },
        "n01443537/videogame_0": {"answer": "goldfish", "category": "videogame"},
        "n01484850/art_1": {
            "answer": "great white shark",
            "image": "images/ImageNet-R/n01484850/art_1.jpg",
            "details": {"question_id": "art_1.jpg", "wnid": "n01484850"},
        },
    },
}
REJECTED = {"test": {4: "question n09999999/sketch_2 has an empty answer"}}


def write(raw: Path, archive: str = "") -> None:
    """archive: its path, where the pictures are in one."""
    folder = raw / "imagenet-r"
    folder.mkdir(parents=True)
    (folder / "README.txt").write_text(README)
    if archive:
        members = [f"imagenet-r/{name}" for name in PICTURES]
        pack(raw / archive, members, beside=["imagenet-r/README.txt", "imagenet-r/n01443537/._art_1.jpg"])
    else:
        place(folder, PICTURES)
        (folder / "n01443537/.DS_Store").write_text("of a Mac")
