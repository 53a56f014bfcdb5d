"""Settings of the prepare stage. Standard library only, because addresses are planned from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.published_layout import ADVICE, find_published
from robustmerge.stage.files import expand
from robustmerge.stage.settings import (
    ConfigError,
    Problem,
    UserError,
    first_few,
    later,
    outside_identity,
    refuse,
    suggest,
)
from robustmerge.stage.text import quote

SPLITS = ("train", "val", "test")
ID_RULES = ("file", "number")
OF_DATASETS = ("subset", "classes", "question", "val_of_test")  # keys without a meaning for other data
GENERATOR = 3  # version of what mini and its base draw: raised with any change of a picture, a question or an answer
LABEL_GENERATOR = 2  # the same of the label tasks and the pictures with captions (data_prep.clip)
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
class TaskData:
    """The data of one task: drawn by a generator of a mini benchmark, read from question files, or from a dataset of
    labelled pictures.

    train, val, test: question files (LLaVA's JSON list, or JSON lines). Their paths stay outside the identity because
    their contents enter it, as inputs of the stage.
    images: the folder that the `image` fields are relative to; default: the folder of each question file. The names
    and sizes of the images are an input too.
    annotations: a file that adds references or options to the test questions (data_prep.annotations).
    collection: a folder with the published question files, in any of the published layouts
    (data_prep.published_layout); the file names above are searched for in it, that of the annotations also in `images`.
    ids: `file` for the question ids of the file, `number` for the number of a question in it, from 1, where they are
    not unique.
    seed: of the drawing, and of the part of `train` that serves as `val` where there is no val file (at most
    counts.val examples, and at most a tenth).
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
    dataset: str | None = outside_identity(None)
    subset: str = outside_identity("")
    image_column: str = later("image")
    label_column: str = later("label")
    classes: tuple[str, ...] = later(())
    question: str = later("")
    val_of_test: float = later(0.0)
    jobs: int = outside_identity(1)

    def __post_init__(self) -> None:
        names = (*SPLITS, "images", "annotations", "collection", "dataset")
        files = [name for name in names if getattr(self, name) is not None]
        if self.generator is not None and files:
            raise ConfigError(
                Problem(f"{self.task}: give either a generator or files, got generator and {', '.join(files)}")
            )
        if self.generator is None and self.train is None and self.test is None:
            raise ConfigError(Problem(f"{self.task}: give a generator, or a train or test question file"))
        refuse(self._problems_of_dataset())
        if self.annotations is not None and self.test is None:
            raise ConfigError(Problem(f"{self.task}: annotations are on test questions, and there is no test file"))
        if self.ids not in ID_RULES:
            raise ConfigError(Problem(f"unknown rule '{self.ids}'; {suggest(self.ids, ID_RULES)}", "ids"))
        if self.jobs < 1:
            raise ConfigError(Problem(f"jobs must be at least 1, got {self.jobs}"))

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
    def splits(self) -> dict[str, str]:
        """The splits that there are, by what they are called in the dataset, or their question files."""
        return {split: name for split in SPLITS if (name := getattr(self, split)) is not None}

    @property
    def question_files(self) -> dict[str, Path]:
        """The question files by split. Raises UserError for those that a collection does not have."""
        return self._find_files(SPLITS)

    @property
    def input_files(self) -> dict[str, Path]:
        """Every file whose contents enter the identity, by its key. Raises UserError as `question_files` does."""
        return self._find_files((*SPLITS, "annotations"))

    def _find_files(self, keys: Sequence[str]) -> dict[str, Path]:
        paths, problems = {}, []
        for key in keys:
            if (name := getattr(self, key)) is None:
                continue
            try:
                paths[key] = self._find_file(key, name)
            except UserError as error:
                problems.append(f"{self.task}: {error}")
        if problems:
            raise UserError("\n".join([*problems, ADVICE]))
        return paths

    def _find_file(self, key: str, name: str) -> Path:
        if self.collection is None:
            return expand(name)
        folders = [self.collection, self.images] if key == "annotations" and self.images else [self.collection]
        return find_published([expand(folder) for folder in folders], name, f"task.{self.task}.data.{key}")


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
