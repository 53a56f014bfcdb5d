"""Check a composed config and read it into frozen dataclasses; all mistakes are reported at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.settings import BaseCorpus, CaptionCorpus, Counts, Sample, TaskData
from eval.settings import PROTOCOLS, Bootstrap, Logger, PaperTable, Selection, Task
from llava_ext.settings import AlignedBase, Expert, Peft, Trainer, positive
from pipeline.models import Model
from pipeline.program import parse_overrides
from pipeline.strengths import is_set_by_user, problems_of_grid
from robustmerge.experts import find_experts
from robustmerge.hub.pins import Repository
from robustmerge.method import AnyMethod, FunctionMethod, build_method, list_methods, read_method
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, choose, refuse, suggest
from robustmerge.stage.text import quote

EXPERT_SETS = ("trained", "released")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Paths:
    """Folders. runs: of results; mm_mergebench, mm_mergebench_images: the published question files, their pictures.

    A relative path starts at the repository.
    """

    runs: str = "runs"
    mm_mergebench: str = "data/mm_mergebench"
    mm_mergebench_images: str = "data/mm_mergebench/datasets"

    @property
    def pins(self) -> Path:
        """The file that keeps which commit each Hub repository stood for when it was first named."""
        return REPOSITORY / expand(self.runs) / "hub.json"

    def root(self, profile: str, benchmark: str, model: str) -> Path:
        """`runs/<benchmark>-<model>`, under `runs/smoke/` for the smoke profile."""
        runs = REPOSITORY / expand(self.runs)
        return (runs if profile == "full" else runs / profile) / f"{benchmark}-{model}"


@dataclass(frozen=True)
class Benchmark:
    """What is evaluated. counts: questions per split; seed: for drawing; corpus: what the small base is trained on.

    paper_table: the paper's table that its reports are shown beside, unless an experiment names another.
    released: by seen task, the expert that somebody has released: a folder, or user/repo[@revision] on the Hub.
    source, sample: for tasks read from files (data_prep.settings.TaskData), whose own config files refer to them.
    """

    name: str
    counts: Counts = Counts()
    seed: int = 0
    corpus: BaseCorpus | CaptionCorpus = BaseCorpus()
    paper_table: PaperTable = PaperTable()
    released: dict[str, str] = field(default_factory=dict)
    source: str = "questions"
    sample: Sample = Sample()


@dataclass(frozen=True)
class Options:
    """The settings that belong to no config group."""

    profile: str
    multi_task: bool
    seed: int
    jobs: int
    source: str | None
    report: str | None
    pdf: bool = False
    expert_set: str = "trained"
    device: str | None = None
    merge_device: str = "cpu"
    strength_grid: tuple[float, ...] | None = None
    weight_search: tuple[str, ...] = ()
    search_budget: int = 100
    merge_count: int | None = None
    protocol: str = "corrected"
    other_protocol: bool = True
    limit: int | None = None
    ids: tuple[str | int, ...] | None = None
    out: str | None = None
    raw: str = ""
    plan: bool = False
    tokens_per_second: float | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(Problem(f"jobs must be at least 1, got {self.jobs}", "jobs"))
        if self.report is not None and not re.fullmatch(r"[\w.=-]{1,100}", self.report):
            rule = "a report's name is made of at most 100 letters, digits and _.=-"
            raise ConfigError(Problem(f"{rule}, got {quote(self.report)}", "report"))
        choose(self.protocol, PROTOCOLS, "protocol")
        choose(self.expert_set, EXPERT_SETS, "expert_set")
        if self.device is not None:
            choose(self.device, DEVICES, "device")
        choose(self.merge_device, DEVICES, "merge_device")
        refuse(problems_of_grid(self.strength_grid))
        if self.search_budget < 1:
            raise ConfigError(Problem(f"search_budget must be at least 1, got {self.search_budget}", "search_budget"))
        if self.merge_count is not None and self.merge_count < 1:
            raise ConfigError(Problem(f"merge_count must be at least 1, got {self.merge_count}", "merge_count"))
        refuse(positive(self, "tokens_per_second"))
        self.only  # noqa: B018  # raises if limit or ids are invalid

    @property
    def only(self) -> Selection:
        """The selection of questions by `limit` or `ids`; all of them if neither is given."""
        return Selection(self.limit, tuple(sorted({str(name) for name in self.ids or ()})))


@dataclass(frozen=True)
class Config(Options):
    """One point of a sweep: every setting of a run. Tasks and methods are in the order of the tables.

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
    paper_table: PaperTable
    tasks: tuple[Task, ...]
    methods: tuple[AnyMethod, ...]
    experts: tuple[tuple[str, Path | Repository], ...] | None
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
        shared = {"counts": dataclasses.asdict(counts), "seed": self.benchmark.seed, "jobs": self.jobs}
        settings = task.data if self.trains or self.reads_val else _without_training(task.data)
        return build(TaskData, {"task": task.name, **shared, **settings}, f"task.{task.name}.data")

    @property
    def reads_val(self) -> bool:
        """Whether anything is chosen on val."""
        return bool(self.strength_grid or self.weight_search)

    @property
    def trains(self) -> bool:
        """Whether the experts are trained here."""
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
            quantize=self.model.quantize,
        )


def _without_training(data: dict) -> dict:
    """A task's data without the files that only training and the choice of strengths read: they need not be there."""
    release = data.get("release") or {}
    kept = {"release": {**release, "train": None, "val": None}} if release.get("test") else {}
    return {key: value for key, value in data.items() if key not in ("train", "val") or not data.get("test")} | kept


def read_config(point: Mapping[str, Any]) -> Config:
    """Check a composed config. Raises UserError; where several keys are wrong, all are named."""
    point = dict(point)
    problems: list[Problem] = []
    parts = {"paths": Paths, "benchmark": Benchmark, "model": Model, "peft": Peft, "trainer": Trainer}
    parts |= {"logger": Logger, "bootstrap": Bootstrap, "paper_table": PaperTable}
    built = {key: _collect(problems, build, cls, point.pop(key), key) for key, cls in parts.items()}
    tasks = _collect(problems, _build_tasks, point.pop("task"), point.pop("tasks"))
    merge = point.pop("merge", None)
    methods = _collect(problems, _build_methods, merge, point.pop("methods"))
    experts = _collect(problems, _find_experts, point.pop("experts"))
    options = _collect(problems, build, Options, point, "")
    refuse(problems)
    is_fixed = merge is not None and is_set_by_user(merge, options.overrides)
    fixed = tuple(method.name for method in methods) if is_fixed else ()
    config = Config(**built, tasks=tasks, methods=methods, experts=experts, fixed=fixed, **vars(options))
    refuse(_find_problems(config))
    return config


def _build_tasks(nodes: Mapping[str, Any], chosen: list[str] | str | None) -> tuple[Task, ...]:
    """Build the tasks of a benchmark, or the subset that `tasks` names. nodes: settings by name."""
    if stray := [name for name, node in nodes.items() if not isinstance(node, Mapping)]:
        rule = "the file of a task begins with the line '# @package task.NAME'"
        raise ConfigError(Problem(f"{rule}: without it {', '.join(map(str, stray))} would each be a task", "task"))
    chosen = list(nodes) if chosen is None else _as_names(chosen, "tasks")
    unknown = [name for name in chosen if name not in nodes]
    problems = [Problem(f"unknown task '{name}'; {suggest(name, nodes)}", "tasks") for name in unknown]
    tasks = [
        _collect(problems, build, Task, {"name": name, **node}, f"task.{name}")
        for name, node in nodes.items()
        if name in chosen
    ]
    refuse(problems)
    return tuple(tasks)


def _build_methods(merge: Mapping[str, Any] | None, names: list[str] | str | None) -> tuple[AnyMethod, ...]:
    """`merge=NAME` narrows the table to one method; otherwise `methods` names its rows, None for no merged one."""
    if merge is not None:
        return (build_method(merge),)
    if names is None:
        return ()
    problems: list[Problem] = []
    names = list_methods() if names == "all" else _as_names(names, "methods")
    methods = tuple(_collect(problems, read_method, name) for name in names)
    refuse(problems)
    return methods


def _find_experts(entries: list[str] | str | None) -> tuple[tuple[str, Path | Repository], ...] | None:
    """Where each expert is, by name; None for those of `expert_set`. Nothing is fetched yet."""
    return None if entries is None else tuple(find_experts(_as_names(entries, "experts")).items())


def _find_problems(config: Config) -> list[Problem]:
    """Problems between the parts of a configuration, each of which is valid by itself."""
    problems: list[Problem] = []
    for task in config.tasks:
        _collect(problems, config.data, task)
    if config.seen:
        _collect(problems, config.expert, *config.seen)
    if config.benchmark.counts.test < 1:
        problems.append(
            Problem(f"there must be a test question, got {config.benchmark.counts.test}", "benchmark.counts.test")
        )
    if config.expert_set == "released" and config.experts is None:
        lacking = [task.name for task in config.seen if task.name not in config.benchmark.released]
        if lacking:
            problems.append(
                Problem(
                    f"no expert is known to be released for {', '.join(lacking)} of {config.benchmark.name} "
                    "(benchmark.released); those of the paper: benchmark=mm_mergebench model=llava15_7b"
                )
            )
    experts = len(config.seen if config.experts is None else config.experts)
    if config.merge_count is not None and config.merge_count > experts:
        rule = f"there are {experts} experts to take from, got {config.merge_count}"
        problems.append(Problem(rule, "merge_count"))
    if drawn := [task.name for task in config.tasks if task.general and config.model.base is None]:
        rule = "these questions are drawn for the small models; scripts/general.py asks the real benchmarks"
        problems.append(Problem(f"{rule}: {', '.join(drawn)}", "tasks"))
    problems += [*_find_unanswerable(config), *_find_ignored_keys(config), *_find_unsearchable(config)]
    names = {"benchmark.name": [config.benchmark.name], "model.name": [config.model.name]}
    names["merge.name"] = [method.name for method in config.methods]
    for key, values in names.items():
        bad = [name for name in values if not re.fullmatch(r"[a-z0-9_]+", name)]
        rule = "a name is made of a-z, 0-9 and _ (it becomes a folder)"
        problems += [Problem(f"{rule}, got '{name}'", key) for name in bad]
    return problems


def _find_unanswerable(config: Config) -> list[Problem]:
    """Tasks and a protocol that do not suit a model of this family, and a base corpus that it cannot be trained on."""
    family = config.model.kind
    kind = "questions" if family.answers_with_classes else "classes of pictures (model=clip_tiny)"
    odd = [task.name for task in config.tasks if task.has_classes != family.answers_with_classes]
    rule = f"model={config.model.name} is a {family.title}, and these tasks are about {kind}"
    problems = [Problem(f"{rule}: {', '.join(odd)}", "benchmark, model")] if odd else []
    unknown = "official" if family.answers_with_classes else "joint"
    if config.protocol == unknown and not odd:
        other = "questions" if family.answers_with_classes else "classes of pictures"
        problems.append(Problem(f"protocol {unknown} is for tasks about {other}", "protocol"))
    if config.model.trained_base is not None and not isinstance(config.benchmark.corpus, family.corpus) and not odd:
        problems.append(Problem(f"a {family.title} is trained on another kind of corpus", "benchmark.corpus"))
    return problems


def _find_unsearchable(config: Config) -> Iterator[Problem]:
    """Methods of `weight_search` that are no rows, or have no weights to search."""
    methods = {method.name: method for method in config.methods}
    for name in config.weight_search:
        method = methods.get(name)
        if method is None:
            yield Problem(f"'{name}' is not one of the methods; {suggest(name, methods)}", "weight_search")
        elif isinstance(method, FunctionMethod):
            yield Problem(f"{name} is a function, which has no weights of the experts", "weight_search")
        elif method.is_graded:
            rule = "weights are searched for all modules alike, and strength or weights differ by module here"
            yield Problem(f"{rule}: {name}", "weight_search")


NAMED = "this chooses a shipped base, and {} names another"


def _find_ignored_keys(config: Config) -> list[Problem]:
    """The command-line keys that concern a base other than the one in use."""
    model, keys = config.model, parse_overrides(config.overrides)
    if model.base is None:
        return []
    is_aligned = isinstance(model.base, AlignedBase)
    if model.base.train or (model.trained_base is not None and not is_aligned):
        shipped = {"model.checkpoint": model.checkpoint, "model.base.alignment": getattr(model.base, "alignment", None)}
        rule = "model.base.train=true trains the base here, so that nothing shipped is used"
        return [Problem(rule, key) for key, value in shipped.items() if key in keys and value is not None]
    of_base = [key for key in keys if f"{key}.".startswith(("model.base.", "benchmark.corpus."))]
    choosing = ["model.base.knows", *(["model.base.alignment", "model.base.language"] if is_aligned else [])]
    rule = "this says how a base is trained, and the one in use is shipped; add model.base.train=true to train it"
    problems = [Problem(rule, key) for key in of_base if key not in (*choosing, "model.base.train")]
    if "model.checkpoint" in keys:
        problems += [Problem(NAMED.format("model.checkpoint"), key) for key in choosing if key in keys]
    elif is_aligned and {"model.base.alignment", "model.base.knows"} <= keys.keys():
        problems.append(Problem(NAMED.format("model.base.alignment"), "model.base.knows"))
    return problems


def _collect(problems: list[Problem], make: Any, *arguments: Any) -> Any:
    """Call make(*arguments); if that fails, add what is wrong to the problems and return None."""
    try:
        return make(*arguments)
    except ConfigError as error:
        problems.extend(error.problems)
    except (UserError, ValueError) as error:
        problems.append(Problem(str(error)))
    return None


def _as_names(value: Any, key: str) -> list[str]:
    """A list of names; a bare name is a list of one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(Problem(f"expected a list of names, as '{key}=[a,b]', got {value!r}", key))
    if not names:
        raise ConfigError(Problem("the list is empty", key))
    return names


def list_differences(
    settings: Mapping[str, Any], default: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(key path, value) for every setting that is not the default's."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            yield from list_differences(value, default[key], f"{prefix}{key}.")
        elif value != default.get(key):
            yield f"{prefix}{key}", value
