"""Import a task from question files in LLaVA's format and a folder of images: check them, copy them into the stage.

Images are copied, so that editing one later changes nothing that is prepared. Read-only images, which nobody edits in
place, are hard-linked where the file system can: `chmod -R a-w` on a large collection saves its size on disk.
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
from typing import NamedTuple, TypeVar

from data_prep.annotations import join_annotations
from data_prep.parallel import map_in_order
from data_prep.settings import SPLITS, TaskData
from robustmerge.stage.files import BESIDE, expand
from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.progress import Bar
from robustmerge.stage.records import LONGEST_PATH, Example, read_examples, read_images
from robustmerge.stage.settings import UserError, first_few

T = TypeVar("T")
AnswerCheck = Callable[[str, Example], str]  # of a split's example: what is wrong with its answers, "" if nothing
IMAGES_FOR_A_POOL = 2000  # from this number on, several processes decode sooner than one


class SourceImage(NamedTuple):
    """An image outside the stage's folder that can be decoded. size: width and height in pixels."""

    path: Path
    size: tuple[int, int]


def accept_any(split: str, example: Example) -> str:
    """The check of a task whose answers are not compared."""
    return ""


def import_task(
    folder: Path, settings: TaskData, say: Callable[[str], None], check: AnswerCheck = accept_any
) -> tuple[dict[str, list[Example]], dict]:
    """Check a task's question files and copy their images into `folder`.

    Returns the examples of each split (image paths relative to `folder`) and what the manifest should record: the ids
    of `val` where it was cut from `train`, and how many images occur in several splits.
    Every image is decoded whole, and nothing is written before everything is checked. Raises UserError naming the first
    questions whose answers `check` refuses, or the first missing or unreadable images, and their number.
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
    _check_answers(files, splits, check)
    images = _check_images(settings, files, splits)
    if links := _find_links_out(settings, files, images):
        (source, target), *_ = links.items()
        say(f"{settings.task}: images behind links out of data.images: {len(links)}, as {source} -> {target}")
    for split, file in files.items():
        splits[split] = [_with_copied_image(settings, file, example, images) for example in splits[split]]
    if "val" not in files and splits["train"]:
        splits["train"], splits["val"] = cut_val(splits["train"], settings)
        record["val_cut_from_train"] = [example.question_id for example in splits["val"]]
        say(f"{settings.task}: no val file, {len(splits['val'])} examples of train serve as val")
    shared = _count_shared(splits)
    if shared:
        say(f"{settings.task}: {shared} images occur in more than one split")
    record |= {"examples": {split: len(splits[split]) for split in SPLITS}, "images_in_several_splits": shared}
    for name, image in with_progress_bar(images.items(), f"{settings.task}: copying images", len(images)):
        _link_or_copy(image.path, folder / name)
    return splits, record


def list_pictures(settings: TaskData) -> dict[str, int]:
    """Every image that the question files name, with its size in bytes (-1: missing), for the task's identity.

    Sizes and not digests: they are read at every start, and a collection may hold a hundred thousand images.
    """
    sizes = {}
    for file in settings.question_files.values():
        stat = file.stat() if file.exists() else None
        for image in _list_images(file, stat and (stat.st_size, stat.st_mtime_ns)):
            sizes[image] = _size_of(_image_root(settings, file) / image)
    return sizes


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):  # a name that is too long
        return -1


@lru_cache(maxsize=64)
def _list_images(file: Path, version: tuple[int, int] | None) -> tuple[str, ...]:
    """The images that a version of a file names; cached for a whole sweep, as half a million questions take seconds."""
    return read_images(file)


def _read_split(settings: TaskData, split: str, file: Path) -> list[Example]:
    """The questions of a split; those of `test` need no answer where annotations bring it."""
    return read_examples(file, settings.ids == "number", split != "test" or settings.annotations is None)


def cut_val(train: list[Example], settings: TaskData) -> tuple[list[Example], list[Example]]:
    """Move at most counts.val examples, and at most a tenth, from train to val by the seed. Returns (train, val)."""
    number = min(settings.counts.val, max(1, len(train) // 10)) if len(train) > 1 else 0
    val = set(Random(f"{settings.seed}/{settings.task}/val").sample(range(len(train)), number))
    return [example for index, example in enumerate(train) if index not in val], [train[index] for index in sorted(val)]


def _check_answers(files: dict[str, Path], splits: dict[str, list[Example]], check: AnswerCheck) -> None:
    """Raises UserError for questions whose answers `check` refuses, naming the first."""
    problems = [
        f"{file}, record {number} (question {example.question_id}): {problem}"
        for split, file in files.items()
        for number, example in enumerate(splits[split], start=1)
        if (problem := check(split, example))
    ]
    if problems:
        raise UserError("\n".join(first_few(problems)))


def _image_root(settings: TaskData, file: Path) -> Path:
    return expand(settings.images) if settings.images else file.parent


def _name_in_stage(root: Path, image: str) -> str:
    """The path of an image's copy in the stage's folder.

    Raises ValueError if the image lies outside its root, or the path could not be kept or read again.
    """
    inside = os.path.normpath(os.path.relpath(root / image, root))
    if inside in (os.curdir, os.pardir) or inside.startswith(os.pardir + os.sep):
        raise ValueError(f"{image} lies outside {root}")
    if any(part.startswith(".") and part.endswith(BESIDE) for part in Path(inside).parts):
        raise ValueError(f"{image} has a name of unfinished files (.*{BESIDE}), which are removed; rename it")
    name = Path("images", inside).as_posix()
    if len(name) > LONGEST_PATH:
        raise ValueError(f"{image} is too long: {name[:7]} and the path may have {LONGEST_PATH} characters")
    return name


def _with_copied_image(settings: TaskData, file: Path, example: Example, images: dict[str, SourceImage]) -> Example:
    if example.image is None:
        return example
    name = _name_in_stage(_image_root(settings, file), example.image)
    return dataclasses.replace(example, image=name, size=example.size or images[name].size)


def _check_images(
    settings: TaskData, files: dict[str, Path], splits: dict[str, list[Example]]
) -> dict[str, SourceImage]:
    """Every image by its path in the stage's folder. Raises UserError for those that cannot be decoded."""
    paths, problems = _list_sources(settings, files, splits)
    jobs = settings.jobs if len(paths) >= IMAGES_FOR_A_POOL else 1
    sizes = map_in_order(_decode_size, paths.values(), jobs)
    images = {}
    for (name, path), size in zip(
        paths.items(), with_progress_bar(sizes, f"{settings.task}: reading images", len(paths)), strict=True
    ):
        if isinstance(size, str):
            problems[path] = size
        else:
            images[name] = SourceImage(path, size)
    if problems:
        lines = first_few(list(problems.values()))
        raise UserError("\n  ".join([f"{settings.task}: {len(problems)} images cannot be read (data.images):", *lines]))
    return images


def _list_sources(
    settings: TaskData, files: dict[str, Path], splits: dict[str, list[Example]]
) -> tuple[dict[str, Path], dict[Path, str]]:
    """The path of every image by its path in the stage's folder, and what is wrong with images by their path."""
    sources: dict[str, Path] = {}
    problems: dict[Path, str] = {}
    for split, file in files.items():
        root = _image_root(settings, file)
        for image in dict.fromkeys(example.image for example in splits[split] if example.image is not None):
            try:
                name = _name_in_stage(root, image)
                source = root / image
                if name in sources and not os.path.samefile(sources[name], source):
                    raise ValueError(f"{source} and {sources[name]} have the same name; give data.images")
                sources.setdefault(name, source)
            except (OSError, ValueError) as error:
                problems[root / image] = str(error)
    folders: dict[str, str] = {}  # with a picture below
    for name in sources:
        place = os.path.dirname(name)
        while place and place not in folders:
            folders[place] = name
            place = os.path.dirname(place)
    for name in folders.keys() & sources.keys():
        source, below = sources[name], sources[folders[name]]
        problems[source] = f"{source} and a folder of {below} have the same name; give data.images"
    return sources, problems


def _find_links_out(settings: TaskData, files: dict[str, Path], images: dict[str, SourceImage]) -> dict[Path, str]:
    """The images that links lead to out of the folders of images, with what they lead to."""
    roots = {os.path.realpath(_image_root(settings, file)) + os.sep for file in files.values()}
    follow = lru_cache(os.path.realpath)  # of folders, which hold many images
    links = {}
    for path in (image.path for image in images.values()):
        target = os.path.realpath(path) if path.is_symlink() else os.path.join(follow(path.parent), path.name)
        if not target.startswith(tuple(roots)):
            links[path] = target
    return links


def _decode_size(source: Path) -> tuple[int, int] | str:
    """Width and height of an image that can be decoded to its end, or why it cannot."""
    try:
        return read_picture(source).size
    except PictureError as error:
        return str(error)


def with_progress_bar(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The items, with a progress bar if they take more than two seconds."""
    return Bar(
        items,
        desc=title,
        total=total,
        unit="image",
        delay=2,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
        leave=False,
    )


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that nobody may write to, copy any other."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".copy{BESIDE}")
    partial.unlink(missing_ok=True)
    if not source.stat().st_mode & 0o222:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), partial)
    if not partial.exists():
        shutil.copyfile(source, partial)
    os.replace(partial, target)


def _count_shared(splits: dict[str, list[Example]]) -> int:
    """How many images occur in several splits."""
    counts = Counter(name for examples in splits.values() for name in {e.image for e in examples if e.image})
    return sum(1 for count in counts.values() if count > 1)
