"""A user's own task: question files in LLaVA's format and a folder of images, checked and taken over.

What a stage reads is in its folder: images are copied, so that editing one later changes nothing that is prepared.
Read-only images, which nobody edits in place, are hard-linked where the file system can: `chmod -R a-w` on a large
collection saves its size on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data_prep.annotations import join_annotations
from data_prep.parallel import map_in_order
from data_prep.settings import SPLITS, TaskData
from robustmerge.stage.records import Example, read_examples, read_images
from robustmerge.stage.settings import UserError

T = TypeVar("T")
SHOWN = 5
WORTH = 2000  # images for which it pays to start processes that decode them


def take_over(folder: Path, settings: TaskData, say: Callable[[str], None]) -> tuple[dict[str, list[Example]], dict]:
    """Check the user's files and take their images over into `folder`.

    Returns the examples of each split (image paths relative to `folder`) and what the record should keep: the ids
    of `val` where it was cut from `train`, and how many pictures several splits share.
    Every image is decoded whole. Raises UserError naming the first missing or unreadable ones and their number.
    """
    files = settings.question_files
    splits = {split: _read_split(settings, split, files[split]) if split in files else [] for split in SPLITS}
    if empty := [str(files[split]) for split in files if not splits[split]]:
        raise UserError(f"{settings.task}: no examples in {', '.join(empty)}")
    record: dict = {}
    if settings.annotations is not None:
        path = settings.input_files["annotations"]
        splits["test"], record["annotations"] = join_annotations(splits["test"], path)
        say(f"{settings.task}: {record['annotations']} from {path}")
    found = _find_images(settings, files, splits)
    for name, (source, _) in _with_bar(found.items(), f"{settings.task}: copying images", len(found)):
        _place_image(source, folder / name)
    sizes = {name: size for name, (_, size) in found.items()}
    splits = {split: [_placed(settings, files[split], e, sizes) for e in splits[split]] for split in files} | {
        split: [] for split in SPLITS if split not in files
    }
    if "val" not in files and splits["train"]:
        splits["train"], splits["val"] = cut_val(splits["train"], settings)
        record["val_cut_from_train"] = [example.question_id for example in splits["val"]]
        say(f"{settings.task}: no val file, {len(splits['val'])} examples of train serve as val")
    shared = _count_shared(splits)
    if shared:
        say(f"{settings.task}: {shared} images occur in more than one split")
    record |= {"examples": {split: len(splits[split]) for split in SPLITS}, "images_in_several_splits": shared}
    return splits, record


def list_pictures(settings: TaskData) -> dict[str, int]:
    """Every picture that the question files name, with its size in bytes (-1: missing), for the task's identity.

    Sizes and not digests: they are asked for at every start, and a collection may hold a hundred thousand pictures.
    """
    sizes = {}
    for file in settings.question_files.values():
        about = file.stat() if file.exists() else None
        for image in _named_pictures(file, about and (about.st_size, about.st_mtime_ns)):
            path = _root(settings, file) / image
            sizes[image] = path.stat().st_size if path.is_file() else -1
    return sizes


@lru_cache(maxsize=64)
def _named_pictures(file: Path, version: tuple[int, int] | None) -> tuple[str, ...]:
    """What a version of a file names, read once for all points of a sweep: half a million questions take seconds."""
    return read_images(file)


def _read_split(settings: TaskData, split: str, file: Path) -> list[Example]:
    """The questions of a split as the file has them. Annotations may bring the answers of `test`."""
    return read_examples(file, settings.ids == "number", split != "test" or settings.annotations is None)


def cut_val(train: list[Example], settings: TaskData) -> tuple[list[Example], list[Example]]:
    """Cut at most counts.val examples and at most a tenth from train, chosen by the seed. Returns (train, val)."""
    number = min(settings.counts.val, max(1, len(train) // 10)) if len(train) > 1 else 0
    chosen = set(Random(f"{settings.seed}/{settings.task}/val").sample(range(len(train)), number))
    rest = [example for index, example in enumerate(train) if index not in chosen]
    return rest, [train[index] for index in sorted(chosen)]


def _root(settings: TaskData, file: Path) -> Path:
    return Path(settings.images).expanduser() if settings.images else file.parent


def _place(root: Path, image: str) -> str:
    """Where an image comes to lie in the stage's folder. Raises ValueError if it lies outside its root."""
    inside = os.path.normpath(os.path.relpath(root / image, root))
    if inside.startswith(".."):
        raise ValueError(f"{image} lies outside {root}")
    return Path("images", inside).as_posix()


def _placed(settings: TaskData, file: Path, example: Example, sizes: dict[str, tuple[int, int]]) -> Example:
    if example.image is None:
        return example
    name = _place(_root(settings, file), example.image)
    return dataclasses.replace(example, image=name, size=example.size or sizes[name])


def _find_images(
    settings: TaskData, files: dict[str, Path], splits: dict[str, list[Example]]
) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Every image by its new name: where it is now and its size."""
    sources, bad = _list_sources(settings, files, splits)
    jobs = settings.jobs if len(sources) > WORTH else 1
    looked = map_in_order(_look_at, sources.values(), jobs)
    sizes = _with_bar(looked, f"{settings.task}: reading images", len(sources))
    found = {}
    for (name, source), size in zip(sources.items(), sizes, strict=True):
        if isinstance(size, str):
            bad[str(source)] = size
        else:
            found[name] = (source, size)
    if bad:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in list(bad.items())[:SHOWN])
        more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(f"{settings.task}: {len(bad)} images cannot be read (data.images):\n{shown}{more}")
    return found


def _list_sources(
    settings: TaskData, files: dict[str, Path], splits: dict[str, list[Example]]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Every image by its new name, and why there is none for some paths."""
    sources: dict[str, Path] = {}
    bad: dict[str, str] = {}
    for split, file in files.items():
        root = _root(settings, file)
        for image in dict.fromkeys(example.image for example in splits[split] if example.image is not None):
            try:
                name = _place(root, image)
                source = root / image
                if name in sources and not os.path.samefile(sources[name], source):
                    raise ValueError(f"{source} and {sources[name]} have the same name; give data.images")
                sources.setdefault(name, source)
            except (OSError, ValueError) as error:
                bad[str(root / image)] = _explain(error)
    return sources, bad


def _look_at(source: Path) -> tuple[int, int] | str:
    """Width and height of an image that can be decoded to its end, or why it cannot."""
    try:
        with Image.open(source) as picture:
            picture.load()
            return picture.size
    except Exception as error:  # a broken file makes Pillow raise nearly anything, SyntaxError and struct.error too
        return _explain(error)


def _with_bar(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The items, with a progress bar if they take more than two seconds."""
    pace = 0.5 if sys.stderr.isatty() else 15
    return tqdm(items, desc=what, total=total, unit="image", delay=2, mininterval=pace, dynamic_ncols=True, leave=False)


def _explain(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _place_image(source: Path, target: Path) -> None:
    """Link a file that nobody may write to, copy any other."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    beside.unlink(missing_ok=True)
    if not source.stat().st_mode & 0o222:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), beside)
    if not beside.exists():
        shutil.copyfile(source, beside)
    os.replace(beside, target)


def _count_shared(splits: dict[str, list[Example]]) -> int:
    """How many pictures several splits have."""
    counts = Counter(name for examples in splits.values() for name in {e.image for e in examples if e.image})
    return sum(1 for count in counts.values() if count > 1)
