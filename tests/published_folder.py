"""A tiny MM-MergeBench in the published layouts: three test questions a task, eight with training files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

QUESTIONS = 3
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nA. left\nB. right\nAnswer with the option's letter from the given choices directly."
# By task: its folder on the Hub, the names of its test file and its annotations.
FILES: dict[str, tuple[str, str, str | None]] = {
    "scienceqa": ("Seen_data/ScienceQA", "test.json", "problems.json"),
    "imagenet": ("Seen_data/ImageNet", "test.json", None),
    "vqav2": ("Seen_data/VQAv2", "val.json", "v2_mscoco_val2014_annotations.json"),
    "rec": ("Seen_data/Grounding", "test.json", None),
    "ocrvqa": ("Seen_data/OCRVQA", "test.json", None),
    "vizwiz": ("Seen_data/VizWiz", "val.json", "val_coco_type.json"),
    "flickr30k": ("Seen_data/Flickr30k", "val_brief.json", "val_coco_type.json"),
    "iconqa": ("Seen_data/IconQA", "val.json", None),
    "aokvqa": ("Unseen_data/AOKVQA", "val.json", None),
    "imagenet_r": ("Unseen_data/ImageNet-R", "test.json", None),
    "screen2words": ("Unseen_data/Screen2words", "test.json", "test_coco_type.json"),
    "tabmwp": ("Unseen_data/TabMWP", "test.json", None),
}
# The right answers. The published scorer cuts the second decimal off the last side of a box; these survive it.
ANSWERS: dict[str, tuple[str, str, str]] = {
    "scienceqa": ("A", "B", "B"),
    "imagenet": ("Hip", "Whippet", "Koala"),
    "vqav2": ("yes", "2", "white"),
    "rec": ("[0.1,0.2,0.7,0.55]", "[0.0,0.2,0.5,0.65]", "[0.3,0.3,0.9,0.75]"),
    "ocrvqa": ("The Book", "No", "Mystery"),
    "vizwiz": ("a cat on a mat", "a can of soup", "a dark room"),
    "flickr30k": ("two dogs run", "a man sits", "a red bus"),
    "iconqa": ("3", "left", "12"),
    "aokvqa": ("A", "B", "A"),
    "imagenet_r": ("goldfish", "tarantula", "hen"),
    "screen2words": ("a login page", "a map", "a list of songs"),
    "tabmwp": ("1,000", "$5", "1/2"),
}
CAPTIONED = ("flickr30k", "screen2words", "vizwiz")
WITHOUT_ANSWERS = ("flickr30k", "screen2words")  # question files without answers: the captions are in the other file


def write_published(root: Path) -> tuple[Path, Path]:
    """Write everything under `root` as the Hub has it. Returns the collection and the folder of the pictures."""
    collection, images = root / "hub", root / "pictures"
    for name, (folder, test, annotation_file) in FILES.items():
        place, answers = collection / folder, ANSWERS[name]
        questions = [_question(name, number, answer) for number, answer in enumerate(answers)]
        _write(place / test, questions)
        if folder.startswith("Seen"):
            train = "train_brief_4w.json" if name == "flickr30k" else "train.json"
            _write(place / train, [_conversation(name, number, answer) for number, answer in enumerate(answers)])
        if annotation_file is not None:
            _write(place / annotation_file, _annotations(name, questions, answers))
        for record in questions:
            if "image" in record:
                (images / record["image"]).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 4), (len(name), 40, 80)).save(images / record["image"])
    (images / "ScienceQA").mkdir(parents=True, exist_ok=True)  # the scripts read it beside the pictures
    shutil.move(collection / "Seen_data/ScienceQA/problems.json", images / "ScienceQA/problems.json")
    return collection, images


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _question(name: str, number: int, answer: str) -> dict[str, Any]:
    record: dict[str, Any] = {"question_id": number if name == "vqav2" else f"{name}-{number}"}
    if name == "imagenet_r":
        record["question_id"] = "art_0.png"
    record["text"] = f"What is it in {number}?{LETTER if name in ('scienceqa', 'aokvqa') else SHORT}"
    if name != "scienceqa" or number > 0:
        record["image"] = f"./{name}/val/{number}.png"
    if name not in WITHOUT_ANSWERS:
        record["answer_bbox" if name == "rec" else "answer"] = answer
    return record | ({"size": [6, 4]} if name == "rec" else {})


def _conversation(name: str, number: int, answer: str) -> dict[str, Any]:
    texts = [f"<image>\nWhat is it in {number}?{SHORT}", answer]
    image = f"./{name}/val/{max(number, 1)}.png"
    turns = [{"from": who, "value": value} for who, value in zip(("human", "gpt"), texts, strict=True)]
    return {"id": f"{name}-train-{number}", "image": image, "conversations": turns}


def _annotations(name: str, questions: list[dict[str, Any]], answers: Sequence[str]) -> dict[str, Any]:
    if name == "scienceqa":
        indices = {one["question_id"]: "AB".index(answer) for one, answer in zip(questions, answers, strict=True)}
        return {name: {"choices": ["left", "right"], "answer": index} for name, index in indices.items()}
    if name == "vqav2":
        people = [[answer] * 9 + ["maybe"] for answer in answers]
        return {
            "annotations": [
                {"question_id": one["question_id"], "answers": [{"answer": text} for text in texts]}
                for one, texts in zip(questions, people, strict=True)
            ]
        }
    captions = [(number, text) for number, answer in enumerate(answers, 1) for text in (answer, f"here is {answer}")]
    return {
        "images": [{"id": i, "file_name": f"elsewhere/{one['image'][-5:]}"} for i, one in enumerate(questions, 1)],
        "annotations": [{"id": i, "image_id": n, "caption": text} for i, (n, text) in enumerate(captions, 1)],
    }
