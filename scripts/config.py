"""What a command line asks for, checked: the composed config as frozen dataclasses, all mistakes at once."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from data_prep.settings import BaseCorpus, Counts, TaskData
from eval.settings import PROTOCOLS, Bootstrap, Logger, Selection, Task
from llava_ext.settings import Expert, Model, Peft, Trainer
from robustmerge.method import Method, OutsideMethod
from robustmerge.runs import REPOSITORY
from robustmerge.settings import ConfigError, build, choose, refuse
from scripts.choosing import problems_of_grid

EXPERT_SETS = ("trained", "released")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Paths:
    """runs: where results live; mm_mergebench, mm_mergebench_images: the published question files, their pictures.

    A relative path starts at the repository.
    """

    runs: str = "runs"
    mm_mergebench: str = "data/mm_mergebench"
    mm_mergebench_images: str = "data/mm_mergebench/datasets"

    @property
    def pins(self) -> Path:
        """Which commit each repository of the Hub stood for when it was first named."""
        return REPOSITORY / Path(self.runs).expanduser() / "hub.json"

    def root(self, profile: str, benchmark: str, model: str) -> Path:
        """`runs/<benchmark>-<model>`, under `runs/smoke/` for the smoke profile."""
        runs = REPOSITORY / Path(self.runs).expanduser()
        return (runs if profile == "full" else runs / profile) / f"{benchmark}-{model}"


@dataclass(frozen=True)
class Benchmark:
    """What is evaluated. counts: questions a split; seed: of the drawing; corpus: of the small base model.

    released: by seen task, the expert that somebody has released: a folder, or user/repo[@revision] of the Hub.
    """

    name: str
    counts: Counts = Counts()
    seed: int = 0
    corpus: BaseCorpus = BaseCorpus()
    released: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class General:
    """The keys outside of any group."""

    profile: str
    multi_task: bool
    seed: int
    jobs: int
    source: str | None
    report: str | None
    expert_set: str = "trained"
    device: str | None = None
    strength_grid: tuple[float, ...] | None = None
    protocol: str = "corrected"
    other_protocol: bool = True
    limit: int | None = None
    ids: tuple[str | int, ...] | None = None
    out: str | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError([f"jobs must be at least 1, got {self.jobs} (jobs)"])
        if self.report is not None and not re.fullmatch(r"[\w.=-]+", self.report):
            raise ConfigError([f"a report's name is made of letters, digits and _.=-, got '{self.report}' (report)"])
        choose(self.protocol, PROTOCOLS, "protocol")
        choose(self.expert_set, EXPERT_SETS, "expert_set")
        if self.device is not None:
            choose(self.device, DEVICES, "device")
        refuse(problems_of_grid(self.strength_grid))
        self.only  # noqa: B018  # refuses what limit and ids have wrong

    @property
    def only(self) -> Selection:
        """The questions that are asked; all of them unless `limit` or `ids` says which."""
        return Selection(self.limit, tuple(sorted({str(name) for name in self.ids or ()})))


@dataclass(frozen=True)
class Config(General):
    """One point: everything that a run is told. Tasks and methods are in the order of the tables.

    fixed: the methods whose strength the user gives, so that none is chosen.
    """

    _: KW_ONLY
    paths: Paths
    benchmark: Benchmark
    model: Model
    peft: Peft
    trainer: Trainer
    logger: Logger
    bootstrap: Bootstrap
    tasks: tuple[Task, ...]
    methods: tuple[Method | OutsideMethod, ...]
    experts: tuple[tuple[str, Path], ...] | None
    fixed: tuple[str, ...] = ()

    @property
    def seen(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.seen)

    @property
    def root(self) -> Path:
        return self.paths.root(self.profile, self.benchmark.name, self.model.name)

    def data(self, task: Task) -> TaskData:
        """What the prepare stage makes for a task. An unseen task is never trained on and never chosen on."""
        counts = self.benchmark.counts if task.seen else dataclasses.replace(self.benchmark.counts, train=0, val=0)
        own = {"counts": dataclasses.asdict(counts), "seed": self.benchmark.seed, "jobs": self.jobs}
        given = task.data if self.trains or self.strength_grid else without_training(task.data)
        return build(TaskData, {"task": task.name, **own, **given}, f"task.{task.name}.data")

    @property
    def trains(self) -> bool:
        """Whether the experts are made here."""
        return self.experts is None and self.expert_set == "trained"

    def expert(self, *tasks: Task) -> Expert:
        """How the expert of one task, or the multi-task model of several, is trained."""
        # One adapter shares its initial A with nobody: a sweep over shared_a_init trains the multi-task model once.
        peft = self.peft if len(tasks) == 1 else dataclasses.replace(self.peft, shared_a_init=False)
        return Expert(
            tasks=tuple(task.name for task in tasks),
            prompts={task.name: task.train_prompt or task.prompt for task in tasks},
            peft=peft,
            recipe=self.model.recipe,
            trainer=self.trainer,
            template=self.model.template,
            seed=self.seed,
        )


def without_training(data: dict) -> dict:
    """A task's data without the files that only training and the choice of strengths read: they need not be there."""
    return {key: value for key, value in data.items() if key not in ("train", "val") or not data.get("test")}
