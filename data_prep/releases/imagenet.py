"""ImageNet (ILSVRC 2012) as its owners publish it: the validation pictures of the benchmark's classes.

The published test file is said to have 5,050 rows, all 50 validation pictures of each of 101 synsets: the rows here, in
another order. Its answers are the hundred names of the prompt; CLASSES says which synsets they stand for. The published
training file is said to have every training picture of these synsets, 129,833. It is not derived here: that takes a
listing of the training pictures, which the two files below are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.origin import Download, Origin
from data_prep.release_rows import iterate_lines, map_rows
from data_prep.templates import SHORT
from robustmerge.stage.json_stream import Element
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

VERSION = 1
ORIGIN = Origin(
    "ImageNet (ILSVRC 2012)",
    "research only, no redistribution (image-net.org, after registration)",
    (
        Download(
            "ImageNet/LOC_synset_mapping.txt, ImageNet/LOC_val_solution.csv",
            "https://www.kaggle.com/competitions/imagenet-object-localization-challenge/data",
            "3 MB",
        ),
        Download(
            "ImageNet/ILSVRC2012_img_val.tar; or unpacked in ImageNet/val, without folders of classes",
            "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
            "6.7 GB",
        ),
    ),
    "which synset the answer Crane2 stands for",
)
FILES = {"val": ("ImageNet/LOC_synset_mapping.txt", "ImageNet/LOC_val_solution.csv")}
_QUESTION = "What is the object in the image?"

# The name of each synset in the published answers, in the order of the prompt. A name is the first lemma of its synset,
# capitalised, but for one. Two synsets are `maillot`: their pictures share an answer, and there are 101 synsets for 100
# names. Two are also `crane`, the bird (n02012849) and the machine: the published data have one of them, named like the
# second of two folders of one name, so that it is probably the machine. That is not proved; a row of the published test
# file with the answer Crane2 would prove it, as LOC_val_solution.csv has the synset of its picture.
CLASSES = {
    "n03223299": "Doormat",
    "n02112018": "Pomeranian",
    "n03017168": "Chime",
    "n02099601": "Golden retriever",
    "n01773797": "Garden spider",
    "n03935335": "Piggy bank",
    "n02089867": "Walker hound",
    "n02980441": "Castle",
    "n02481823": "Chimpanzee",
    "n04357314": "Sunscreen",
    "n04008634": "Projectile",
    "n02672831": "Accordion",
    "n03483316": "Hand blower",
    "n04346328": "Stupa",
    "n03617480": "Kimono",
    "n02106662": "German shepherd",
    "n03793489": "Mouse",
    "n03710637": "Maillot",
    "n03710721": "Maillot",
    "n04111531": "Rotisserie",
    "n13044778": "Earthstar",
    "n04404412": "Television",
    "n02787622": "Banjo",
    "n02128925": "Jaguar",
    "n01514668": "Cock",
    "n03443371": "Goblet",
    "n03854065": "Organ",
    "n03787032": "Mortarboard",
    "n03492542": "Hard disc",
    "n02027492": "Red-backed sandpiper",
    "n09468604": "Valley",
    "n02883205": "Bow tie",
    "n03179701": "Desk",
    "n04204238": "Shopping basket",
    "n02490219": "Marmoset",
    "n02236044": "Mantis",
    "n02165105": "Tiger beetle",
    "n07871810": "Meat loaf",
    "n02099429": "Curly-coated retriever",
    "n02133161": "American black bear",
    "n02117135": "Hyena",
    "n04270147": "Spatula",
    "n04442312": "Toaster",
    "n07718472": "Cucumber",
    "n03297495": "Espresso maker",
    "n02093991": "Irish terrier",
    "n07753113": "Fig",
    "n04409515": "Tennis ball",
    "n04417672": "Thatch",
    "n01632458": "Spotted salamander",
    "n02096437": "Dandie dinmont",
    "n02110341": "Dalmatian",
    "n02095889": "Sealyham terrier",
    "n03590841": "Jack-o'-lantern",
    "n03482405": "Hamper",
    "n07932039": "Eggnog",
    "n02101006": "Gordon setter",
    "n01601694": "Water ouzel",
    "n02088094": "Afghan hound",
    "n02134418": "Sloth bear",
    "n04398044": "Teapot",
    "n02113799": "Standard poodle",
    "n04355933": "Sunglass",
    "n02259212": "Leafhopper",
    "n02794156": "Barometer",
    "n04065272": "Recreational vehicle",
    "n02280649": "Cabbage butterfly",
    "n03980874": "Poncho",
    "n03637318": "Lampshade",
    "n12998815": "Agaric",
    "n01882714": "Koala",
    "n01697457": "African crocodile",
    "n03291819": "Envelope",
    "n02966687": "Carpenter's kit",
    "n02105641": "Old english sheepdog",
    "n07836838": "Chocolate sauce",
    "n07860988": "Dough",
    "n02909870": "Bucket",
    "n03759954": "Microphone",
    "n01820546": "Lorikeet",
    "n03873416": "Paddle",
    "n03126707": "Crane2",
    "n12620546": "Hip",
    "n01806567": "Quail",
    "n03930630": "Pickup",
    "n02823750": "Beer glass",
    "n03314780": "Face powder",
    "n02106550": "Rottweiler",
    "n04493381": "Tub",
    "n07714571": "Head cabbage",
    "n04371774": "Swing",
    "n02110063": "Malamute",
    "n02268853": "Damselfly",
    "n02422106": "Hartebeest",
    "n03447447": "Gondola",
    "n02395406": "Hog",
    "n06359193": "Web site",
    "n02091134": "Whippet",
    "n03424325": "Gasmask",
    "n07749582": "Lemon",
    "n02107683": "Bernese mountain dog",
}


def convert(split: str, mapping: Path, solution: Path) -> Iterator[Element]:
    """Yield the validation pictures of the classes, with all names of their synset for a metric that knows synonyms."""
    names = dict(map_rows(_read_names, iterate_lines(mapping, "a mapping of synsets"), mapping))
    if missing := [synset for synset in CLASSES if synset not in names]:
        raise UserError(f"{mapping} lacks synsets that the benchmark asks about: {', '.join(first_few(missing))}")
    pictures = map_rows(_read_picture, iterate_lines(solution, "a list of pictures and their boxes"), solution)
    for place, picture, synset in pictures:
        if synset in CLASSES:  # the heading of the file is none either
            record = {
                "question_id": picture,
                "image": f"ImageNet/val/{picture}.JPEG",
                "text": f"{_QUESTION}\n{SHORT}",
                "answer": CLASSES[synset],
                "details": {"synset": synset, "names": names[synset]},
            }
            yield Element(place, record, file=solution)


def _read_names(line: Element) -> tuple[str, list[str]]:
    synset, names = _split(line, " ", "n02119022 red fox, Vulpes vulpes")
    return synset, names.split(", ")


def _read_picture(line: Element) -> tuple[str, str, str]:
    """The place, the picture and the synset of its first box: all on a picture are of one."""
    picture, boxes = _split(line, ",", "ILSVRC2012_val_00048981,n03995372 85 1 499 272")
    return line.place, picture, boxes.split()[0]


def _split(line: Element, mark: str, example: str) -> tuple[str, str]:
    first, _, rest = line.value.partition(mark)
    if not rest.strip():
        raise ValueError(f"expected a line such as '{example}', got {quote(line.value)}")
    return first, rest.strip()
