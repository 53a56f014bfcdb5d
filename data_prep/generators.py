"""The twelve task families of the mini benchmark by name.

A generator is a function of a seeded `random.Random` that returns a scene and the fields of its `Example`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from data_prep.mini.captions import make_flickr30k, make_screen2words, make_vizwiz
from data_prep.mini.counting import make_iconqa, make_tabmwp
from data_prep.mini.multiple_choice import make_aokvqa, make_scienceqa
from data_prep.mini.naming import make_imagenet, make_imagenet_r, make_ocrvqa
from data_prep.mini.rec import make_rec
from data_prep.mini.vqav2 import make_vqav2
from data_prep.scenes import Scene

GENERATORS: dict[str, Callable[[Random], tuple[Scene, dict]]] = {
    "scienceqa": make_scienceqa,
    "imagenet": make_imagenet,
    "vqav2": make_vqav2,
    "rec": make_rec,
    "ocrvqa": make_ocrvqa,
    "vizwiz": make_vizwiz,
    "flickr30k": make_flickr30k,
    "iconqa": make_iconqa,
    "aokvqa": make_aokvqa,
    "imagenet_r": make_imagenet_r,
    "screen2words": make_screen2words,
    "tabmwp": make_tabmwp,
}
