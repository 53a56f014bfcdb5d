"""The prepare stage: one task's data as {train,val,test}.jsonl (and .json, LLaVA's question files) with images/.

A drawn task is one sequence over its splits in which no picture occurs twice, so the splits share no image. Every
picture, with what is asked about it, is a function of (seed, task, split, number): the number of processes does not
matter, and `test` does not depend on how many training examples are drawn. All six files always exist; an unseen task,
which is only evaluated, has empty train and val splits (counts of 0). A label task has classes.json too, a JSON list of
the names of its classes in the order of the classifier's rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from data_prep.clip.corpus import write_captions
from data_prep.clip.tasks import LABEL_TASKS
from data_prep.importing import AnswerCheck, accept_any, import_task
from data_prep.labelled_pictures import import_pictures
from data_prep.mini.corpus import write_corpus
from data_prep.mini.drawing import draw, encode
from data_prep.mini.general import GENERAL
from data_prep.mini.tasks import GENERATORS
from data_prep.parallel import map_in_order
from data_prep.settings import SPLITS, BaseCorpus, CaptionCorpus, TaskData
from data_prep.splits import write_splits
from robustmerge.stage.address import UNFINISHED, Address, address_foreign, run_stage
from robustmerge.stage.files import remove, write_atomically
from robustmerge.stage.records import CLASSES, Example
from robustmerge.stage.settings import UserError, choose

CHUNK = 128
CHUNKS_PER_PROCESS = 32  # fewer do not repay the start of one more process
ORDER = ("test", "val", "train")  # test first: its pictures do not depend on what else is drawn


@dataclass(frozen=True)
class Drawn:
    """A drawn picture and its questions. path: in the folder; image: as PNG; digest: sha256 of the pixels."""

    examples: tuple[Example, ...]
    split: str
    index: int
    path: str
    image: bytes
    digest: bytes


def draw_picture(task: TaskData, split: str, index: int, attempt: int = 0) -> Drawn:
    """Draw picture `index` of a split; another attempt gives another picture in its place."""
    rng = Random(f"{task.seed}/{task.generator}/{split}/{index}/{attempt}")
    question_id, path = f"{task.task}-{split}-{index:05d}", f"images/{split}_{index:05d}.png"
    picture, questions = _draw_with_questions(task.generator or "", rng, split, index)
    several = task.generator in GENERAL
    ids = [f"{question_id}-{number}" if several else question_id for number in range(1, len(questions) + 1)]
    examples = tuple(Example(question_id=one, image=path, **fields) for one, fields in zip(ids, questions, strict=True))
    return Drawn(examples, split, index, path, encode(picture), hashlib.sha256(picture.tobytes()).digest())


def _draw_with_questions(name: str, rng: Random, split: str, index: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture of a generator, with the fields of what is asked about it."""
    if name in LABEL_TASKS:
        picture, label = LABEL_TASKS[name].make(rng, split, index)
        return picture, [{"text": LABEL_TASKS[name].question, "answer": label}]
    if name in GENERAL:
        scene, questions = GENERAL[name].make(rng)
        return draw(scene), questions
    scene, fields = GENERATORS[choose(name, {**GENERATORS, **GENERAL, **LABEL_TASKS}, "generator")](rng)
    return draw(scene), [fields]


def _count_pictures(task: TaskData, split: str) -> int:
    """The pictures of a split: as many as its questions need."""
    a_picture = GENERAL[task.generator].questions if task.generator in GENERAL else 1
    return math.ceil(getattr(task.counts, split) / a_picture)


def _draw_chunk(job: tuple[TaskData, str, int, int]) -> list[Drawn]:
    task, split, start, stop = job
    return [draw_picture(task, split, index) for index in range(start, stop)]


def draw_task(task: TaskData) -> dict[str, list[Drawn]]:
    """Draw all splits of a task; a picture that occurred before is replaced, in the order of the sequence.

    Raises UserError for an unknown generator, and for more pictures than there are where they are not drawn.
    """
    jobs = [
        (task, split, start, min(start + CHUNK, _count_pictures(task, split)))
        for split in ORDER
        for start in range(0, _count_pictures(task, split), CHUNK)
    ]
    splits: dict[str, list[Drawn]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    for chunk in map_in_order(_draw_chunk, jobs, min(task.jobs, 1 + len(jobs) // CHUNKS_PER_PROCESS)):
        for drawn in chunk:
            attempt = 0
            while drawn.digest in seen:
                attempt += 1
                drawn = draw_picture(task, drawn.split, drawn.index, attempt)
            seen.add(drawn.digest)
            splits[drawn.split].append(drawn)
    return splits


def check_no_shared_image(splits: dict[str, list[Drawn]]) -> None:
    """Raises AssertionError if two pictures of a task have the same pixels."""
    digests = [drawn.digest for split in splits.values() for drawn in split]
    if len(set(digests)) != len(digests):
        raise AssertionError(f"{len(digests) - len(set(digests))} pictures occur twice; the redraw is broken")


def _write_drawn(folder: Path, task: TaskData) -> dict:
    splits = draw_task(task)
    check_no_shared_image(splits)
    (folder / "images").mkdir(exist_ok=True)
    for split in splits.values():
        for drawn in split:
            (folder / drawn.path).write_bytes(drawn.image)
    examples = {name: [one for drawn in split for one in drawn.examples] for name, split in splits.items()}
    write_splits(folder, examples)
    if task.generator in LABEL_TASKS:
        classes = LABEL_TASKS[task.generator].classes
        write_atomically(folder / CLASSES, json.dumps(classes, ensure_ascii=False) + "\n")
    return {"examples": {split: len(examples[split]) for split in SPLITS}}


def _write_labelled(folder: Path, task: TaskData, say: Callable[[str], None]) -> dict:
    splits, record = import_pictures(folder, task, say)
    write_splits(folder, splits)
    return record


def _import(folder: Path, address: Address, settings: TaskData, say: Callable[[str], None], check: AnswerCheck) -> dict:
    """Import a task. Raises UserError, in place of any other, if a file is not, or no longer, that of the address."""
    _refuse_changed(address, settings)
    try:
        return import_task(folder, settings, say, check)
    finally:
        try:
            _refuse_changed(address, settings)
        except UserError:
            remove(folder / UNFINISHED)
            raise


def _refuse_changed(address: Address, settings: TaskData) -> None:
    known = address.identity.get("inputs", {})
    for name, file in settings.named_files.items():
        if name in known and known[name] != address_foreign(file).fingerprint:
            raise UserError(f"{file} has changed since the command was started; type the same command again")


def prepare(
    address: Address, settings: TaskData, say: Callable[[str], None] = print, check: AnswerCheck = accept_any
) -> Path:
    """Write one task's data, drawn or read from files, into the folder of `address`.

    An interrupted drawing starts over (the same bytes, in about a second), an interrupted import goes on. check: of the
    answers in question files and releases; data that is prepared already is not checked again.
    Raises UserError for an unknown generator and for faulty question files, datasets or images.
    """
    if settings.dataset is not None:
        return run_stage(address, lambda folder: _write_labelled(folder, settings, say), say)
    if settings.generator is None:
        return run_stage(address, lambda folder: _import(folder, address, settings, say, check), say)
    return run_stage(address, lambda folder: _write_drawn(folder, settings), say)


def prepare_corpus(address: Address, settings: BaseCorpus | CaptionCorpus, say: Callable[[str], None] = print) -> Path:
    """Draw the training corpus of a small base model into the folder of `address`.

    Its layout: `data_prep.mini.corpus`; of pictures with captions: `data_prep.clip.corpus`. An interrupted run starts
    over (the same bytes, in about ten seconds; pictures with captions in a minute).
    """
    if isinstance(settings, CaptionCorpus):
        return run_stage(address, lambda folder: write_captions(folder, settings), say)
    return run_stage(address, lambda folder: write_corpus(folder, settings), say)
