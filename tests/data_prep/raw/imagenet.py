"""ImageNet in the owners' layout: the names of synsets, boxes on the validation pictures, and an archive of those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.releases.imagenet import CLASSES
from tests.data_prep.raw.drawn import pack
from tests.data_prep.raw.wordings import SHORT

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "val": {
        "ILSVRC2012_val_00000002": {
            "image": "images/ImageNet/val/ILSVRC2012_val_00000002.JPEG",
            "text": f"What is the object in the image?\n{SHORT}",
            "answer": "Bow tie",
            "details": {"synset": "n02883205", "names": ["bow tie", "bow-tie", "bowtie"]},
        },
        "ILSVRC2012_val_00000003": {
            "answer": "Maillot",
            "details": {"synset": "n03710721", "names": ["maillot", "tank suit"]},
        },
        "ILSVRC2012_val_00000004": {"answer": "Maillot", "details": {"synset": "n03710637", "names": ["maillot"]}},
        "ILSVRC2012_val_00000005": {"answer": "Crane2", "details": {"synset": "n03126707", "names": ["crane"]}},
    }
}
REJECTED = {"val": {5: "ImageNet/val/ILSVRC2012_val_00000007.JPEG does not exist"}}
NAMES = {
    "n02883205": "bow tie, bow-tie, bowtie",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
    "n03126707": "crane",
    "n02012849": "crane",
    "n01440764": "tench, Tinca tinca",
}
BOXES = """ImageId,PredictionString
ILSVRC2012_val_00000001,n01440764 85 1 499 272\x20
ILSVRC2012_val_00000002,n02883205 1 2 3 4 n02883205 5 6 7 8\x20
ILSVRC2012_val_00000003,n03710721 1 2 3 4\x20
ILSVRC2012_val_00000004,n03710637 1 2 3 4\x20
ILSVRC2012_val_00000005,n03126707 1 2 3 4\x20
ILSVRC2012_val_00000006,n02012849 1 2 3 4\x20
ILSVRC2012_val_00000007,n02091134 1 2 3 4\x20
"""


def write(raw: Path) -> None:
    names = {synset: name.lower() for synset, name in CLASSES.items()} | NAMES
    (raw / "ImageNet").mkdir(parents=True)
    (raw / "ImageNet/LOC_synset_mapping.txt").write_text("".join(f"{one} {names[one]}\n" for one in sorted(names)))
    (raw / "ImageNet/LOC_val_solution.csv").write_text(BOXES)
    pack(raw / "ImageNet/ILSVRC2012_img_val.tar", [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7)])
