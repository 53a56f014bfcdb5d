"""What the prepare stages are told. No import beyond the standard library: addresses are planned from these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustmerge.settings import ConfigError, outside_identity, refuse

SPLITS = ("train", "val", "test")
GENERATOR = 2  # version of everything that is drawn: raised with any change of a picture, a question or an answer


@dataclass(frozen=True)
class Counts:
    """Examples a split. Zero is allowed: a task that is only evaluated needs neither train nor val."""

    train: int = 2000
    val: int = 200
    test: int = 500

    def __post_init__(self) -> None:
        refuse([f"{name} must be at least 0, got {getattr(self, name)}" for name in SPLITS if getattr(self, name) < 0])


@dataclass(frozen=True)
class TaskData:
    """One task's data: drawn by a generator of the mini benchmark, or taken from a user's own question files.

    train, val, test: question files (LLaVA's JSON list, or JSON lines). They stay outside the identity because
    their contents enter it, as inputs of the stage.
    images: the folder that the `image` fields are relative to; default: the folder of each question file. The names
    and sizes of the pictures are an input too.
    seed: of the drawing, and of the cut of `train` that serves as `val` where a user gives none
    (at most counts.val of them, and at most a tenth).
    """

    task: str
    generator: str | None = None
    counts: Counts = Counts()
    seed: int = 0
    train: str | None = outside_identity(None)
    val: str | None = outside_identity(None)
    test: str | None = outside_identity(None)
    images: str | None = outside_identity(None)
    jobs: int = outside_identity(1)

    def __post_init__(self) -> None:
        files = [name for name in (*SPLITS, "images") if getattr(self, name) is not None]
        if self.generator is not None and files:
            raise ConfigError([f"{self.task}: give either a generator or files, got generator and {', '.join(files)}"])
        if self.generator is None and self.train is None and self.test is None:
            raise ConfigError([f"{self.task}: give a generator, or a train or test question file"])
        if self.jobs < 1:
            raise ConfigError([f"jobs must be at least 1, got {self.jobs}"])

    @property
    def question_files(self) -> dict[str, Path]:
        """The user's question files by split."""
        named = {split: getattr(self, split) for split in SPLITS}
        return {split: Path(name).expanduser() for split, name in named.items() if name is not None}


@dataclass(frozen=True)
class BaseCorpus:
    """What the small base model is trained on. images: pictures with labels; dialogues: conversations on them.

    held_out: dialogues on other pictures, to measure on.
    """

    images: int = 40_000
    dialogues: int = 38_000
    held_out: int = 2_000
    seed: int = 0
    jobs: int = outside_identity(2)

    def __post_init__(self) -> None:
        names = ("images", "dialogues", "held_out", "jobs")
        refuse([f"{name} must be at least 1, got {getattr(self, name)}" for name in names if getattr(self, name) < 1])
