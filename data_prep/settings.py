"""Settings of the prepare stage. Standard library only, because addresses are planned from them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from data_prep.published_layout import ADVICE, find_published
from robustmerge.stage.files import expand
from robustmerge.stage.settings import (
    ConfigError,
    Problem,
    UserError,
    choose,
    first_few,
    later,
    outside_identity,
    refuse,
    suggest,
)
from robustmerge.stage.text import quote

SPLITS = ("train", "val", "test")
ID_RULES = ("file", "number")
SOURCES = ("questions", "release")
OF_DATASETS = ("subset", "classes", "question", "val_of_test")  # keys without a meaning for other data
GENERATOR = 3  # version of what mini and its base draw: raised with any change of a picture, a question or an answer
LABEL_GENERATOR = 2  # the same of the label tasks and the pictures with captions (data_prep.clip)
_RELEASES = "data_prep.releases"
LABEL_PREFIX = "clip_"  # of their generators' names


def version_of(generator: str) -> int:
    """The version of what a generator draws."""
    return LABEL_GENERATOR if generator.startswith(LABEL_PREFIX) else GENERATOR


def _problems_of_counts(settings: object, names: Sequence[str], least: int) -> list[Problem]:
    counts = {name: getattr(settings, name) for name in names}
    return [Problem(f"{name} must be at least {least}, got {count}") for name, count in counts.items() if count < least]


@dataclass(frozen=True)
class Counts:
    """Number of examples of each split; 0 for a split that the task does not have."""

    train: int = 2000
    val: int = 200
    test: int = 500

    def __post_init__(self) -> None:
        refuse(_problems_of_counts(self, SPLITS, 0))


@dataclass(frozen=True)
class Sample(Counts):
    """How many rows of each split are taken, drawn by the seed; 0: all of them."""

    train: int = 0
    val: int = 0
    test: int = 0


@dataclass(frozen=True)
class Release:
    """A dataset as its owners publish it.

    name: of its converter in data_prep.releases; train, val, test: its split that serves as this one.
    """

    name: str
    train: str | None = None
    val: str | None = None
    test: str | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ConfigError(
                Problem(f"expected the name of a file in data_prep/releases, got {quote(self.name)}", "name")
            )


@dataclass(frozen=True)
class TaskData:
    """The data of one task: drawn by a generator, or read from question files, an owner's release or labelled pictures.

    train, val, test: question files (LLaVA's JSON list, or JSON lines). Their paths stay outside the identity because
    their contents enter it, as inputs of the stage.
    images: the folder that the `image` fields are relative to; default: the folder of each question file. The names
    and sizes of the images are an input too.
    annotations: a file that adds references or options to the test questions (data_prep.annotations).
    collection: a folder with the published question files, in any of the published layouts
    (data_prep.published_layout); the file names above are searched for in it, that of the annotations also in `images`.
    ids: `file` for the question ids of the file, `number` for the number of a question in it, from 1, where they are
    not unique.
    source: `questions` for the files above, `release` for `release`, whose files are searched for in `collection` and
    `images`, which its pictures are relative to.
    sample: of so many rows instead of all. most_rejected: the share of a split's rows that may be left out because they
    are faulty or their picture is; with more, nothing is prepared.
    seed: of the drawing, of the sample, and of the pictures of `train` whose questions serve as `val` where there is no
    val file (at most counts.val questions, and at most a tenth).
    dataset: a folder or `user/repo[@revision]` of the Hub with labelled pictures (data_prep.labelled_pictures); then
    train, val and test name splits of it. subset: its folder of these splits. image_column, label_column: of its
    parquet files. classes: their names in the classifier's order, where they are not the dataset's own. question: what
    a person would be asked about every picture. val_of_test: the fraction of `test`, shuffled by the seed, that serves
    as `val`.
    """

    task: str
    generator: str | None = None
    counts: Counts = Counts()
    seed: int = 0
    train: str | None = outside_identity(None)
    val: str | None = outside_identity(None)
    test: str | None = outside_identity(None)
    images: str | None = outside_identity(None)
    annotations: str | None = outside_identity(None)
    collection: str | None = outside_identity(None)
    ids: str = later("file")
    source: str = outside_identity("questions")
    release: Release | None = outside_identity(None)
    sample: Sample = later(Sample())
    most_rejected: float = outside_identity(0.0)
    dataset: str | None = outside_identity(None)
    subset: str = outside_identity("")
    image_column: str = later("image")
    label_column: str = later("label")
    classes: tuple[str, ...] = later(())
    question: str = later("")
    val_of_test: float = later(0.0)
    jobs: int = outside_identity(1)

    def __post_init__(self) -> None:
        names = (*SPLITS, "images", "annotations", "collection", "dataset", "release")
        files = [name for name in names if getattr(self, name) is not None]
        if self.generator is not None and files:
            raise ConfigError(
                Problem(f"{self.task}: give either a generator or files, got generator and {', '.join(files)}")
            )
        if self.generator is None and not {"train", "test"} & self.splits.keys():
            raise ConfigError(Problem(f"{self.task}: give a generator, or a train or test question file"))
        refuse([*self._problems_of_dataset(), *self._problems_of_files()])
        if self.jobs < 1:
            raise ConfigError(Problem(f"jobs must be at least 1, got {self.jobs}"))

    def _problems_of_files(self) -> Iterator[Problem]:
        if self.annotations is not None and self.test is None:
            yield Problem(f"{self.task}: annotations are on test questions, and there is no test file")
        if self.ids not in ID_RULES:
            yield Problem(f"unknown rule '{self.ids}'; {suggest(self.ids, ID_RULES)}", "ids")
        if self.source not in SOURCES:
            yield Problem(f"unknown source '{self.source}'; {suggest(self.source, SOURCES)}", "source")
        if self.source == "release" and (self.release is None or self.collection is None):
            yield Problem("a release needs its converter and the folder of its files", "release.name, collection")
        if not 0 <= self.most_rejected < 1:
            yield Problem(f"most_rejected must be in [0, 1), got {self.most_rejected}", "most_rejected")

    def _problems_of_dataset(self) -> Iterator[Problem]:
        if self.dataset is None:
            if given := [name for name in OF_DATASETS if getattr(self, name)]:
                yield Problem(f"this is about a dataset of labelled pictures, and none is given: {', '.join(given)}")
            return
        if given := [name for name in ("images", "annotations", "collection") if getattr(self, name) is not None]:
            yield Problem(f"this is about question files, and a dataset is given: {', '.join(given)}")
        if not self.question.strip():
            yield Problem("a dataset of labelled pictures needs the question that its labels answer", "question")
        if doubled := sorted(name for name, count in Counter(self.classes).items() if count > 1):
            yield Problem(f"a class is named twice: {', '.join(first_few(doubled))}", "classes")
        if not all(name.strip() for name in self.classes):
            yield Problem("the name of a class is empty", "classes")
        if not 0 <= self.val_of_test < 1:
            yield Problem(f"val_of_test must be in [0, 1), got {self.val_of_test}", "val_of_test")
        if self.val_of_test and (self.test is None or self.val is not None):
            yield Problem("val_of_test needs a test split, and no val split beside it", "val_of_test")
        for key in ("subset", *SPLITS):
            name = getattr(self, key) or ""
            if name and not all(re.fullmatch(r"[\w-][\w.-]*", part) for part in name.split("/")):
                yield Problem(f"expected the name of a split or a folder in the dataset, got {quote(name)}", key)

    @property
    def release_in_use(self) -> Release | None:
        """The release that rows are read from; None where they are from question files, or drawn."""
        return self.release if self.source == "release" else None

    @property
    def splits(self) -> dict[str, str]:
        """The splits that there are, by what they are called in the dataset or the release, or their question files."""
        holder = self.release_in_use or self
        return {split: name for split in SPLITS if (name := getattr(holder, split)) is not None}

    @property
    def input_files(self) -> dict[str, list[Path]]:
        """The files that every split is read from, and `annotations`: what is in them enters the identity.

        Raises UserError for those that a collection does not have.
        """
        paths: dict[str, list[Path]] = {}
        problems = []
        for key, names in self._list_files().items():
            for name in names:
                try:
                    paths.setdefault(key, []).append(self._find_file(key, name))
                except UserError as error:
                    problems.append(f"{self.task}: {error}")
        if problems:
            raise UserError("\n".join([*dict.fromkeys(problems), self._advise()]))
        return paths

    @property
    def named_files(self) -> dict[str, Path]:
        """The input files by their names in the identity."""
        return {
            f"{key}/{number}" if number else key: file
            for key, files in self.input_files.items()
            for number, file in enumerate(files)
        }

    def _advise(self) -> str:
        """Where files that are missing can be had."""
        if self.release_in_use is None:
            return ADVICE
        origin = load_release(self.release_in_use.name).ORIGIN
        downloads = [f"  {one.files}  ({one.size})\n    {one.address}" for one in origin.downloads]
        return "\n".join([f"{origin.title} ({origin.licence}), below the raw folder (docs/data.md):", *downloads])

    def _list_files(self) -> dict[str, Sequence[str]]:
        """The names of the files that every split is read from."""
        if (release := self.release_in_use) is not None:
            files = load_release(release.name).FILES
            for split, name in self.splits.items():
                choose(name, files, f"split of {release.name} (task.{self.task}.data.release.{split})")
            return {split: files[name] for split, name in self.splits.items()}
        return {key: [name] for key in (*SPLITS, "annotations") if (name := getattr(self, key)) is not None}

    def _find_file(self, key: str, name: str) -> Path:
        if self.collection is None:
            return expand(name)
        is_release = self.release_in_use is not None
        is_beside = self.images is not None and (key == "annotations" or is_release)
        folders = [self.collection, *([self.images] if is_beside else [])]
        where = f"task.{self.task}.data.{'release' if is_release else key}"
        return find_published([expand(str(folder)) for folder in dict.fromkeys(folders)], name, where)


def load_release(name: str) -> ModuleType:
    """The converter of a release. Raises UserError if there is none of this name."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module(_RELEASES).__path__)]
    return importlib.import_module(f"{_RELEASES}.{choose(name, names, 'release (data.release.name)')}")


@dataclass(frozen=True)
class BaseCorpus:
    """The training corpus of the small base model.

    images: pictures with labels; readings: exercises without a picture; statements: yes-or-no questions about the
    pictures; dialogues: about the pictures; habits: dialogues that begin with a task's own question; held_out:
    dialogues about other pictures, to measure on.
    """

    images: int = 40_000
    readings: int = 128_000
    statements: int = 100_000
    dialogues: int = 38_000
    habits: int = 24_000
    held_out: int = 2_000
    seed: int = 0
    jobs: int = outside_identity(2)

    def __post_init__(self) -> None:
        counts = ("images", "readings", "statements", "dialogues", "habits", "held_out", "jobs")
        refuse(_problems_of_counts(self, counts, 1))


@dataclass(frozen=True)
class CaptionCorpus:
    """The pictures with captions that the small CLIP is trained on (data_prep.clip.corpus).

    labelled: pictures in the manner of the eight label tasks, an eighth of each; others: of other things; held_out:
    further ones of both, in the same proportion, to measure on.
    """

    labelled: int = 42_000
    others: int = 7_000
    held_out: int = 1_000
    seed: int = 0
    jobs: int = outside_identity(2)

    def __post_init__(self) -> None:
        refuse(_problems_of_counts(self, ("labelled", "others", "held_out", "jobs"), 1))
