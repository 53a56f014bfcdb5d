"""What train_all.sh would train, told before anything is started: rows, steps, tokens, memory by part, time.

Needs no GPU, no weights and no network. What is not known here is estimated, and marked so.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.settings import Task
from llava_ext.packaged import PACKAGES
from llava_ext.settings import MULTI_TASK, AlignedBase, Expert, Trainer
from pipeline.plan import Plan
from pipeline.program import train_all_command
from pipeline.terminal import format_seconds
from pipeline.tools.verify import find_expected, name_expected
from robustmerge.stage.files import expand
from robustmerge.stage.process import loading_libraries
from robustmerge.stage.records import read_examples
from robustmerge.stage.settings import ConfigError, UserError
from robustmerge.stage.tables import format_columns, format_size

if TYPE_CHECKING:
    from llava_ext.footprint import Sizes

TEXT = 100  # tokens of a row besides its picture, where none can be counted
SAMPLED = 2000  # rows of a task whose tokens are counted
EXPERT_TITLES = ("expert", "rows", "known from", "steps", "tokens", "time")
DEVICE_TITLES = (
    "batch",
    "base",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "sum",
    "unchecked",
    "host",
    "time",
)
WIDTH = 118


@dataclass(frozen=True)
class Material:
    """What is known of a task's training rows. source: of their number; mean, longest: tokens of one, where counted."""

    rows: int | None
    source: str
    mean: float | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Run:
    """One training of the plan. tokens: None where nothing is known of the rows; counted: whether none is estimated."""

    name: str
    rows: int | None
    source: str
    steps: int | None
    tokens: float | None
    counted: bool
    is_done: bool


def show_training_plan(plan: Plan) -> None:
    """Print the plan of one configuration."""
    print("\n".join(describe(plan)))


def describe(plan: Plan) -> Iterator[str]:
    """The plan line by line."""
    with loading_libraries():
        from llava_ext.backend import quiet_libraries
        from llava_ext.footprint import find_config, measure

    quiet_libraries()
    config, base = plan.config, find_base(plan)
    layout = None if config.model.kind.answers_with_classes else find_config(base or str(config.model.checkpoint))
    sizes = None if layout is None else measure(layout, config.peft)
    materials = {task.name: find_material(plan, task, base) for task in config.seen}
    usual = TEXT + sizes.picture if sizes else None
    runs = list(list_runs(plan, materials, usual))
    settings = config.expert(*config.seen)
    speed, world = config.tokens_per_second, settings.trainer.world
    yield f"{train_all_command()} would train the following; nothing has been started."
    yield ""
    yield from format_columns(EXPERT_TITLES, [_format_run(run, speed, world) for run in runs], text=(0, 2))
    yield f"A step is {settings.recipe.global_batch} rows. {_explain_tokens(runs, usual)}"
    yield ""
    if sizes is None:
        yield "Parameters and memory are not known without the base's config.json (model.checkpoint=FOLDER)."
        return
    yield from describe_devices(plan, settings, sizes, materials, runs)


def find_base(plan: Plan) -> Path | None:
    """The folder of the base, if it is on this machine; the Hub is not asked."""
    model = plan.config.model
    base = model.trained_base
    places = [model.checkpoint] if base is None else []
    if isinstance(base, AlignedBase):
        places = [base.language, base.tower] if base.train else [base.language, base.alignment]
    is_local = all(place in PACKAGES or expand(str(place)).is_dir() for place in places)
    if not (is_local or plan.config.paths.pins.exists()):
        return None
    try:
        folder = plan.base.path
    except UserError:
        return None
    return folder if (folder / "config.json").is_file() else None


def find_material(plan: Plan, task: Task, base: Path | None) -> Material:
    """What is known of a task's training rows: counted if they are prepared, else what is drawn or expected."""
    settings = plan.config.data(task)
    try:
        folder = plan.data(task).path if plan.data(task).is_complete() else None
    except UserError:  # its files are not there
        folder = None
    if folder is not None:
        with (folder / "train.jsonl").open("rb") as file:
            rows = sum(1 for _ in file)
        lengths = count_tokens(plan, task, folder, base, rows) if base and rows else []
        if lengths:
            return Material(rows, "prepared data", sum(lengths) / len(lengths), max(lengths))
        return Material(rows, "prepared data")
    if settings.generator is not None:
        return Material(settings.counts.train, "the configuration")
    if expected := find_expected(settings, "train"):
        return Material(expected["rows"], name_expected(expected))
    return Material(settings.sample.train or None, "the configuration" if settings.sample.train else "nothing yet")


def count_tokens(plan: Plan, task: Task, folder: Path, base: Path, rows: int) -> list[int]:
    """The tokens of at most so many rows, evenly spread over the file; none for a family without conversations."""
    if plan.config.model.kind.answers_with_classes:
        return []
    with loading_libraries():
        from llava_ext.data import encode_example, load_reader

    reader, prompt = load_reader(base, plan.config.model.template), task.train_prompt or task.prompt
    examples = itertools.islice(read_examples(folder / "train.jsonl"), 0, None, -(-rows // SAMPLED))
    return [len(encode_example(reader, example, prompt).ids) for example in examples]


def list_runs(plan: Plan, materials: Mapping[str, Material], usual: int | None) -> Iterator[Run]:
    """Every expert, then the multi-task model, which sees each task's rows as often as its expert does."""
    with loading_libraries():
        from llava_ext.train import count_steps

    config = plan.config
    wants_all = config.multi_task and len(config.seen) > 1
    for tasks in [*((task,) for task in config.seen), *([config.seen] if wants_all else [])]:
        settings, parts = config.expert(*tasks), [materials[task.name] for task in tasks]
        counts = [part.rows for part in parts if part.rows is not None]
        if len(counts) < len(parts):
            yield Run(settings.name, None, parts[0].source if len(parts) == 1 else "", None, None, False, False)
            continue
        alone = [count_steps(config.expert(task), [count]) for task, count in zip(tasks, counts, strict=True)]
        means = [part.mean or usual for part in parts]
        known = [steps * mean for steps, mean in zip(alone, means, strict=True) if mean]
        yield Run(
            settings.name,
            sum(counts),
            parts[0].source if len(parts) == 1 else "all experts",
            sum(alone),
            settings.recipe.global_batch * sum(known) if len(known) == len(alone) else None,
            all(part.mean for part in parts),
            _is_done(plan, tasks),
        )


def _is_done(plan: Plan, tasks: tuple[Task, ...]) -> bool:
    if find_base(plan) is None:
        return False
    try:
        return plan.expert(*tasks).is_complete()
    except UserError:
        return False


def describe_devices(
    plan: Plan, settings: Expert, sizes: Sizes, materials: Mapping[str, Material], runs: Sequence[Run]
) -> Iterator[str]:
    """What is trained, and what each device holds, on as many processes as configured and on fewer."""
    with loading_libraries():
        from llava_ext.footprint import list_memory, sum_memory

    peft, chosen = settings.peft, settings.trainer
    counted = [material.longest for material in materials.values() if material.longest]
    length = max(counted, default=TEXT + sizes.picture)
    left = [run.tokens for run in runs if not run.is_done]
    tokens, at_least = sum(filter(None, left)), "over " if None in left else ""
    device = "GPU" if chosen.device == "cuda" else "process"
    yield (
        f"Trained: {sizes.lora:,} parameters of LoRA (r {peft.r}) and {sizes.whole:,} of modules trained whole, of a "
        f"base of {sizes.base:,}."
    )
    yield from textwrap.wrap(
        f"Memory of each {device} under trainer={chosen.engine}, for rows of {length} tokens "
        f"({'the longest counted' if counted else 'an estimate'}), by the formulas of llava_ext/footprint.py: CUDA's "
        "own of some 1 GB is not in it. Batch: rows together x accumulated. Unchecked: the sum without gradient "
        "checkpointing. Host: in the memory of each machine. Time: of all that is left to train.",
        WIDTH,
    )
    rows = []
    for trainer in list_smaller(chosen):
        try:
            together, accumulated = trainer.accumulation(settings.recipe.global_batch)
        except ConfigError:
            continue
        parts, open_parts = (
            list_memory(sizes, peft, one, together, length, settings.quantize)
            for one in (trainer, replace(trainer, gradient_checkpointing=False))
        )
        names = [name for name in parts if name != "host"]
        of_machines = f" on {trainer.nodes} machines" if trainer.nodes > 1 else ""
        time = _format_time(tokens, plan.config.tokens_per_second, trainer.world)
        rows.append(
            [
                f"{trainer.world}{of_machines}",
                f"{together} x {accumulated}",
                *(format_size(parts[name]) for name in names),
                format_size(sum_memory(parts)),
                format_size(sum_memory(open_parts)),
                format_size(parts["host"]) if parts["host"] else "—",
                time if time == "—" else at_least + time,
            ]
        )
    yield from format_columns((f"{device}{'es' if device == 'process' else 's'}", *DEVICE_TITLES), rows, text=(0, 1))
    if plan.config.tokens_per_second is None:
        yield "Times need tokens_per_second=, of one GPU: scripts/bench_train.py measures it."


def list_smaller(trainer: Trainer) -> Iterator[Trainer]:
    """The trainer, then on one machine, then with ever fewer processes."""
    yield trainer
    if trainer.nodes > 1:
        yield (trainer := replace(trainer, nodes=1))
    while trainer.processes > 1:
        yield (trainer := replace(trainer, processes=trainer.processes // 2))


def _format_run(run: Run, speed: float | None, world: int) -> list[str]:
    tokens = "—" if run.tokens is None else f"{'' if run.counted else '~'}{run.tokens / 1e6:,.1f} M"
    rows, steps = ("—" if count is None else f"{count:,}" for count in (run.rows, run.steps))
    title = "multi-task" if run.name == MULTI_TASK else run.name
    time = "trained" if run.is_done else _format_time(run.tokens, speed, world)
    return [title, rows, run.source, steps, tokens, time]


def _format_time(tokens: float | None, speed: float | None, world: int) -> str:
    """Seconds in words, if the tokens and the speed of one device are known."""
    if tokens is None or speed is None:
        return "—"
    seconds = tokens / (speed * world)
    return f"{seconds / 3600:.1f} h" if seconds >= 2 * 3600 else format_seconds(seconds)


def _explain_tokens(runs: Sequence[Run], usual: int | None) -> str:
    if usual is None or all(run.counted for run in runs):
        return ""
    return f"~: at {usual} tokens a row, {usual - TEXT} of a picture and {TEXT} of text, an estimate."
