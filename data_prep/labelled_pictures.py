"""Import a dataset of labelled pictures: parquet files as the Hub keeps them, or a folder for every class.

A split called `train` is train-*.parquet, train.parquet, train/*.parquet or train/<class>/<picture>, in the dataset's
folder, in its `data`, or in the `subset` that is named. Pictures are written as they are. They pass through memory by
batches, however large a file is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.importing import IMAGES_FOR_A_POOL
from data_prep.parallel import map_in_order, with_progress_bar
from data_prep.settings import SPLITS, TaskData
from data_prep.splits import draw_val
from robustmerge.stage.files import expand, require_file, write_atomically
from robustmerge.stage.pictures import FORMATS, PictureError, read_picture
from robustmerge.stage.records import CLASSES, Example
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 64  # pictures in memory
FILES = 256  # pictures of a class folder that a process takes at a time
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # by Pillow's format; else its name
WHAT = "a parquet file of labelled pictures"


@dataclass(frozen=True)
class Part:
    """Some pictures of a split: those of a row group of a parquet file, or of files in class folders.

    start: the number of the first in its split; count: how many. names: of the image and of the label column.
    """

    files: tuple[Path, ...]
    split: str
    start: int
    count: int
    row_group: int | None = None
    names: tuple[str, str] = ("", "")


class Picture(NamedTuple):
    """A picture in the stage's folder. label: as the dataset has it; problem: why there is no such picture, or ""."""

    path: str
    place: str
    label: Any
    size: tuple[int, int] = (0, 0)
    problem: str = ""


def list_patterns(settings: TaskData, split: str) -> list[str]:
    """The patterns that the files of a split match in a dataset, by their path from its folder."""
    name = settings.splits[split]
    return [f"{place}{name}{end}" for place in _list_places(settings) for end in ("-*.parquet", ".parquet", "/*")]


def list_sizes(settings: TaskData, folder: Path) -> dict[str, dict[str, int]]:
    """The files of every split of a local dataset with their sizes in bytes, for the task's identity.

    Raises UserError for a split that the folder does not have.
    """
    splits = {split: _find_files(settings, folder, split) for split in settings.splits}
    return {
        split: {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        for split, files in splits.items()
    }


def import_pictures(
    folder: Path, settings: TaskData, say: Callable[[str], None]
) -> tuple[dict[str, list[Example]], dict]:
    """Write the pictures of a local dataset and the names of its classes into `folder`.

    Returns the examples of each split, whose answers are the names of classes, and what the manifest should record.
    Raises UserError for a split that is missing or empty, a missing column, classes that do not fit the dataset's,
    and pictures that cannot be decoded or whose label is none of the classes: the first of them, and their number.
    """
    source = expand(settings.dataset or "")
    files = {split: _find_files(settings, source, split) for split in settings.splits}
    parts = {split: list(_divide(settings, split, files[split])) for split in files}
    if empty := [f"'{settings.splits[split]}'" for split in parts if not _count(parts[split])]:
        raise UserError(f"{settings.task}: {source} has no pictures of {', '.join(empty)}")
    own = _read_own_classes(settings, files)
    classes = _choose_classes(settings, own)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    (folder / "images").mkdir(exist_ok=True)
    for split in parts:
        of_val = _draw_val(settings, _count(parts[split])) if split == "test" else frozenset()
        for index, example in enumerate(_import_split(folder, settings, parts[split], own, classes)):
            splits["val" if index in of_val else split].append(example)
    record: dict = {"classes": len(classes)}
    if "val" not in files and not settings.val_of_test and splits["train"]:
        val = draw_val({example.question_id: 1 for example in splits["train"]}, settings)
        splits["val"] = [example for example in splits["train"] if example.question_id in val]
        splits["train"] = [example for example in splits["train"] if example.question_id not in val]
        say(f"{settings.task}: the dataset has no val split, {len(splits['val'])} pictures of train serve as val")
    if settings.val_of_test and not (splits["val"] and splits["test"]):
        raise UserError(f"{settings.task}: test has too few pictures for val_of_test={settings.val_of_test}")
    write_atomically(folder / CLASSES, json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
    return splits, record | {"examples": {split: len(splits[split]) for split in SPLITS}}


# --- what there is -------------------------------------------------------------------------------------------------


def _list_places(settings: TaskData) -> list[str]:
    return [f"{settings.subset}/"] if settings.subset else ["", "data/"]


def _find_files(settings: TaskData, folder: Path, split: str) -> list[Path]:
    """The parquet files of a split, or else its pictures in class folders, in the order of their names."""
    name = settings.splits[split]
    for place in _list_places(settings):
        patterns = [f"{place}{name}-*.parquet", f"{place}{name}.parquet", f"{place}{name}/*.parquet"]
        if shards := sorted(file for pattern in patterns for file in folder.glob(pattern)):
            return shards
    for place in _list_places(settings):
        pictures = sorted(folder.glob(f"{place}{name}/[!._]*/[!._]*"))
        if pictures := [file for file in pictures if file.is_file()]:
            return pictures
    patterns = list_patterns(settings, split)
    names = sorted(file.name for file in folder.glob("[!._]*"))
    raise UserError(
        f"{settings.task}: {folder} has no split '{name}': no {', no '.join(patterns)}; it has "
        f"{', '.join(first_few(names, 12)) or 'nothing'} (task.{settings.task}.data.{split})"
    )


def _is_parquet(file: Path) -> bool:
    return file.suffix == ".parquet"


def _open(file: Path) -> ParquetFile:
    """Raises UserError for a file that is not parquet."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(require_file(file, WHAT))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as {WHAT}: {error}") from error


def _divide(settings: TaskData, split: str, files: Sequence[Path]) -> Iterator[Part]:
    """Divide a split into parts that can be read on their own. Raises UserError for a missing column."""
    start, names = 0, (settings.image_column, settings.label_column)
    if not _is_parquet(files[0]):
        for first in range(0, len(files), FILES):
            some = tuple(files[first : first + FILES])
            yield Part(some, split, first, len(some))
        return
    for file in files:
        with _open(file) as shard:
            _check_columns(settings, file, shard)
            counts = [shard.metadata.row_group(group).num_rows for group in range(shard.metadata.num_row_groups)]
        for group, count in enumerate(counts):
            yield Part((file,), split, start, count, group, names)
            start += count


def _count(parts: Sequence[Part]) -> int:
    return sum(part.count for part in parts)


def _check_columns(settings: TaskData, file: Path, shard: ParquetFile) -> None:
    import pyarrow

    schema, where = shard.schema_arrow, f"task.{settings.task}.data"
    for key in ("image_column", "label_column"):
        if (name := getattr(settings, key)) not in schema.names:
            raise UserError(f"{file} has no column '{name}'; it has {', '.join(schema.names)} ({where}.{key})")
    kind = schema.field(settings.image_column).type
    if not (pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        rule = "must hold pictures, as {bytes, path}"
        raise UserError(f"{file}: column '{settings.image_column}' {rule}, got {kind} ({where}.image_column)")


# --- classes -------------------------------------------------------------------------------------------------------


def _read_own_classes(settings: TaskData, files: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """The classes that the dataset itself names, in its order; empty where it names none.

    Raises UserError if the splits name different ones.
    """
    named: dict[tuple[str, ...], str] = {}
    folders: set[str] = set()
    for split, paths in files.items():
        if not _is_parquet(paths[0]):
            folders |= {path.parent.name for path in paths}
            continue
        with _open(paths[0]) as shard:
            if names := _read_labels(shard.schema_arrow.metadata, settings.label_column):
                named.setdefault(names, split)
    if folders:
        named.setdefault(tuple(sorted(folders)), "folders")
    if len(named) > 1:
        counts = ", ".join(f"{split}: {len(names)}" for names, split in named.items())
        raise UserError(f"{settings.task}: the splits of {settings.dataset} name different classes ({counts})")
    return next(iter(named), ())


def _read_labels(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The names that the Hub's library keeps for the numbers in a column of labels."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _choose_classes(settings: TaskData, own: Sequence[str]) -> list[str]:
    """The names of the classes in the classifier's order: those of the settings, else the dataset's.

    Raises UserError if they are not as many, or a name of the dataset stands at another place in the settings.
    """
    where = f"task.{settings.task}.data.classes"
    classes = list(settings.classes or own)
    if not classes:
        raise UserError(f"{settings.task}: {settings.dataset} does not name its classes; list them ({where})")
    if doubled := [name for name, count in Counter(classes).items() if count > 1]:
        rule = "the dataset has several classes of one name; give names that differ"
        raise UserError(f"{settings.task}: {rule}: {', '.join(first_few(doubled))} ({where})")
    if own and len(own) != len(classes):
        raise UserError(f"{settings.task}: {len(classes)} classes are listed, the dataset has {len(own)} ({where})")
    places = {_plain_name(name): index for index, name in enumerate(classes)}
    moved = [name for index, name in enumerate(own) if places.get(_plain_name(name), index) != index]
    if moved:
        rule = "classes must be listed in the order of the dataset's, whose numbers are the labels"
        raise UserError(f"{settings.task}: {rule}; at another place: {', '.join(first_few(moved))} ({where})")
    return classes


def _plain_name(name: str) -> str:
    """The name of a class without what a dataset may write differently: `sea_ice`, `Sea ice`."""
    return " ".join(name.replace("_", " ").casefold().split())


def _find_class(label: Any, own: Sequence[str], classes: Sequence[str]) -> str | None:
    """The class that a label stands for: the label's number, or the place of its name; None if there is none."""
    if isinstance(label, str):
        names = own or classes
        return classes[names.index(label)] if label in names else None
    is_number = isinstance(label, int) and not isinstance(label, bool)
    return classes[label] if is_number and 0 <= label < len(classes) else None


# --- pictures ------------------------------------------------------------------------------------------------------


def _draw_val(settings: TaskData, number: int) -> frozenset[int]:
    """The numbers of the test pictures that serve as val: the first of all, shuffled by the seed."""
    order = Random(f"{settings.seed}/{settings.task}/test").sample(range(number), number)
    return frozenset(order[: int(number * settings.val_of_test)])


def _import_split(
    folder: Path, settings: TaskData, parts: Sequence[Part], own: Sequence[str], classes: Sequence[str]
) -> Iterator[Example]:
    """Write the pictures of a split, and yield their questions. Raises UserError at the end if some are faulty."""
    problems: list[str] = []
    split, number = parts[0].split, _count(parts)
    jobs = settings.jobs if number >= IMAGES_FOR_A_POOL else 1
    written = map_in_order(_write_part, [(folder, part) for part in parts], jobs)
    pictures = (picture for some in written for picture in some)
    for index, picture in enumerate(with_progress_bar(pictures, f"{settings.task}: writing {split}", number)):
        name = _find_class(picture.label, own, classes)
        if picture.problem:
            problems.append(f"{picture.place}: {picture.problem}")
        elif name is None:
            problems.append(f"{picture.place}: label {quote(picture.label)} is none of the {len(classes)} classes")
        else:
            yield Example(
                question_id=f"{settings.task}-{split}-{index:05d}",
                text=settings.question,
                answer=name,
                image=picture.path,
                size=picture.size,
            )
    if problems:
        raise UserError("\n  ".join([f"{settings.task}: {len(problems)} faulty pictures:", *first_few(problems)]))


def _write_part(job: tuple[Path, Part]) -> list[Picture]:
    """Write the pictures of a part into a folder, each under its number in the split and checked."""
    folder, part = job
    return [
        _write_picture(folder, f"images/{part.split}_{number:05d}", place, data, label)
        for number, (place, data, label) in enumerate(_read_part(part), start=part.start)
    ]


def _read_part(part: Part) -> Iterator[tuple[str, bytes | None, Any]]:
    """Yield where a picture is, its bytes and its label."""
    if part.row_group is None:
        for file in part.files:
            yield str(file), require_file(file, "a picture").read_bytes(), file.parent.name
        return
    import pyarrow

    (file,), (image, label), row = part.files, part.names, part.start
    try:
        with _open(file) as shard:
            for batch in shard.iter_batches(BATCH, row_groups=[part.row_group], columns=list(part.names)):
                for record in batch.to_pylist():
                    yield f"{file.name}, picture {row} of the split", (record[image] or {}).get("bytes"), record[label]
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _write_picture(folder: Path, stem: str, place: str, data: bytes | None, label: Any) -> Picture:
    from PIL import Image

    if not data:
        return Picture("", place, label, problem="it holds no bytes of a picture")
    try:
        size = read_picture(data).size
    except PictureError as error:
        return Picture("", place, label, problem=str(error))
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        kind = picture.format or ""
    path = f"{stem}{SUFFIXES.get(kind, f'.{kind.lower()}')}"
    (folder / path).write_bytes(data)
    return Picture(path, place, label, size)
