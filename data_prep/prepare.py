"""The prepare stages: one task's data as {train,val,test}.jsonl (and .json, LLaVA's question files) with images/.

A drawn task is one sequence over its splits in which no picture occurs twice, so the splits share no image. Every
example is a function of (seed, task, split, number): the number of processes does not matter, and `test` does not
depend on how many training examples are drawn. All six files always exist; a split with count 0 is empty, which is
what an unseen task asks for: it is only evaluated, neither trained on nor used to choose anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from data_prep.mini.corpus import write_corpus
from data_prep.mini.drawing import draw, encode
from data_prep.mini.tasks import GENERATORS
from data_prep.parallel import map_in_order
from data_prep.question_files import take_over
from data_prep.settings import SPLITS, BaseCorpus, TaskData
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.files import write_atomically
from robustmerge.stage.records import Example, write_examples
from robustmerge.stage.settings import choose

CHUNK = 128
WORTH = 32  # chunks that repay the start of one more process
ORDER = ("test", "val", "train")  # test first: its pictures stand whatever else is drawn


@dataclass(frozen=True)
class Drawn:
    """One example and its picture. digest: sha256 of the pixels."""

    example: Example
    split: str
    index: int
    image: bytes
    digest: bytes


def draw_example(task: TaskData, split: str, index: int, attempt: int = 0) -> Drawn:
    """Example `index` of a split; a further attempt gives another one in its place."""
    rng = Random(f"{task.seed}/{task.generator}/{split}/{index}/{attempt}")
    scene, fields = GENERATORS[task.generator](rng)
    picture = draw(scene)
    example = Example(question_id=f"{task.task}-{split}-{index:05d}", image=f"images/{split}_{index:05d}.png", **fields)
    return Drawn(example, split, index, encode(picture), hashlib.sha256(picture.tobytes()).digest())


def _draw_chunk(job: tuple[TaskData, str, int, int]) -> list[Drawn]:
    task, split, start, stop = job
    return [draw_example(task, split, index) for index in range(start, stop)]


def draw_task(task: TaskData) -> dict[str, list[Drawn]]:
    """All splits of a drawn task. A picture that occurred before is drawn again, in the order of the sequence."""
    jobs = [
        (task, split, start, min(start + CHUNK, getattr(task.counts, split)))
        for split in ORDER
        for start in range(0, getattr(task.counts, split), CHUNK)
    ]
    splits: dict[str, list[Drawn]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    for chunk in map_in_order(_draw_chunk, jobs, min(task.jobs, 1 + len(jobs) // WORTH)):
        for drawn in chunk:
            attempt = 0
            while drawn.digest in seen:
                attempt += 1
                drawn = draw_example(task, drawn.split, drawn.index, attempt)
            seen.add(drawn.digest)
            splits[drawn.split].append(drawn)
    return splits


def check_no_shared_image(splits: dict[str, list[Drawn]]) -> None:
    """Raises AssertionError if two examples of a task have the same pixels."""
    digests = [drawn.digest for drawns in splits.values() for drawn in drawns]
    if len(set(digests)) != len(digests):
        raise AssertionError(f"{len(digests) - len(set(digests))} pictures occur twice; the redraw is broken")


def write_splits(folder: Path, splits: dict[str, Sequence[Example]]) -> None:
    """Write every split as JSON lines and as LLaVA's question file (a JSON list)."""
    for split in SPLITS:
        write_examples(folder / f"{split}.jsonl", splits[split])
        shown = [_question(example) for example in splits[split]]
        write_atomically(folder / f"{split}.json", json.dumps(shown, ensure_ascii=False, indent=1) + "\n")


def _question(example: Example) -> dict:
    """An example in LLaVA's question format: question_id, image, text, answer, and what else it has."""
    names = ("question_id", "image", "text", "answer", "references", "choices", "size", "turns")
    return {name: getattr(example, name) for name in names if getattr(example, name)}


def _write_drawn(folder: Path, task: TaskData) -> dict:
    splits = draw_task(task)
    check_no_shared_image(splits)
    (folder / "images").mkdir(exist_ok=True)
    for drawns in splits.values():
        for drawn in drawns:
            (folder / drawn.example.image).write_bytes(drawn.image)
    write_splits(folder, {split: [drawn.example for drawn in drawns] for split, drawns in splits.items()})
    return {"examples": {split: len(splits[split]) for split in SPLITS}}


def _write_own(folder: Path, task: TaskData, say: Callable[[str], None]) -> dict:
    splits, record = take_over(folder, task, say)
    write_splits(folder, splits)
    return record


def prepare(address: Address, settings: TaskData, say: Callable[[str], None] = print) -> Path:
    """Write one task's data into the folder of `address`, drawn or from a user's own files.

    An interrupted run is drawn again over what it left (the same bytes, in about a second).
    Raises UserError for an unknown generator and for faulty files of the user's.
    """
    if settings.generator is None:
        return run_stage(address, lambda folder: _write_own(folder, settings, say), say)
    choose(settings.generator, GENERATORS, "generator")
    return run_stage(address, lambda folder: _write_drawn(folder, settings), say)


def prepare_corpus(address: Address, settings: BaseCorpus, say: Callable[[str], None] = print) -> Path:
    """Draw the base model's corpus into the folder of `address`; its layout is described in `corpus.py`.

    An interrupted run starts over (the same bytes, in about ten seconds).
    """
    return run_stage(address, lambda folder: write_corpus(folder, settings), say)
