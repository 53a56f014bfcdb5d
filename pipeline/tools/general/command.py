"""General benchmarks of a source: exports the whole model, runs lmms-eval task by task, prints the scores.

general/<source>-<hash8>/checkpoint-<hash8>/   base + source as lmms-eval loads it; removed when all tasks are done
general/<source>-<hash8>/<task>-<hash8>/       lmms-eval's results, answers and log, and score.json
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval.general.lmms_results import GeneralResult, GeneralRun
from eval.report.formats import format_text
from eval.report.general_tables import general_notes, general_table
from eval.report.published import published_general_table
from eval.report.results import PUBLISHED
from pipeline.general_results import KIND
from pipeline.plan import Plan
from pipeline.sources import TITLES, Source
from pipeline.stages import predict
from pipeline.stages.base import require_bases
from pipeline.sweep import make_plan_with
from pipeline.terminal import format_path
from pipeline.tools.general.run_lmms import find_environment, run_task
from robustmerge.method import list_methods, read_method
from robustmerge.stage.address import Address, address_folder, address_foreign, run_stage
from robustmerge.stage.files import expand
from robustmerge.stage.records import read_score
from robustmerge.stage.settings import IMAGE_MODES, ConfigError, Problem, UserError, build, choose, refuse

SCHEMA = 1
DRAWN = (
    "Without lmms-eval and the Hub, bash scripts/merge_eval.sh experiment=table3 asks a small model questions that are "
    "drawn here by the same rules (docs/general.md)"
)


@dataclass(frozen=True)
class GeneralRequest:
    """The keys of general.py. tasks_general: names of lmms-eval; include: a folder of further tasks."""

    tasks_general: tuple[str, ...]
    include: str | None = None
    image: str = "pad"
    environment: str | None = None
    keep_checkpoint: bool = False

    def __post_init__(self) -> None:
        choose(self.image, IMAGE_MODES, "image mode")
        if not self.tasks_general or len(set(self.tasks_general)) != len(self.tasks_general):
            raise ConfigError(Problem(f"name tasks, each once, got {list(self.tasks_general)}", "tasks_general"))
        if self.include is not None and not expand(self.include).is_dir():
            raise ConfigError(Problem(f"there is no folder {self.include}", "include"))


@dataclass(frozen=True)
class Export:
    """Settings of an exported model, apart from the base and the source."""

    template: str
    image: str


@dataclass(frozen=True)
class GeneralPlan:
    """The addresses of one source's general benchmarks."""

    plan: Plan
    request: GeneralRequest

    @cached_property
    def source(self) -> Source:
        return self.plan.selected

    @property
    def folder(self) -> str:
        return f"{KIND}/{self.source.folder}"

    @property
    def inputs(self) -> dict[str, Address]:
        return {"source": self.source.address, "base": self.plan.base}

    @cached_property
    def checkpoint(self) -> Address:
        """The exported model."""
        settings = Export(self.plan.config.model.template, self.request.image)
        return address_folder(self.plan.root, self.folder, "checkpoint", "export", SCHEMA, settings, self.inputs)

    @property
    def include(self) -> Path | None:
        """The folder of further tasks."""
        return expand(self.request.include).resolve() if self.request.include else None

    @cached_property
    def tasks(self) -> list[tuple[Address, GeneralRun]]:
        """Every task with its address, in which a task of `include` counts with all files of that folder."""
        tasks = []
        for run in list_runs(self.plan, self.request):
            inputs = self.inputs
            if self.include is not None and defines_task(self.include, run.task):
                inputs |= {"include": address_foreign(self.include)}
            tasks.append((address_folder(self.plan.root, self.folder, run.task, KIND, SCHEMA, run, inputs), run))
        return tasks


def list_runs(plan: Plan, request: GeneralRequest) -> list[GeneralRun]:
    """The settings of each task's run. Raises ConfigError with all problems."""
    model = plan.config.model
    values = {
        "template": model.template,
        "image": request.image,
        "precision": plan.precision,
        "limit": plan.config.limit,
    }
    if plan.config.ids is not None:
        raise ConfigError(Problem("lmms-eval chooses its own questions: take limit, not ids", "ids"))
    runs: list[GeneralRun] = []
    problems: list[Problem] = []
    for task in request.tasks_general:
        try:
            runs.append(build(GeneralRun, {"task": task, **values}, ""))
        except ConfigError as error:
            problems += error.problems
    refuse(problems)
    return runs


def defines_task(include: Path, task: str) -> bool:
    """Whether a YAML file of the folder describes that task."""
    definition = re.compile(rf"^task\s*:\s*[\"']?{re.escape(task)}[\"']?\s*$", re.MULTILINE)
    return any(definition.search(file.read_text(encoding="utf-8")) for file in sorted(include.rglob("*.yaml")))


def run_general(points: Sequence[Mapping[str, Any]]) -> None:
    """Evaluate the source of every point on all unfinished tasks, and print the scores beside the paper's."""
    planned = [GeneralPlan(*make_plan_with(GeneralRequest, point)) for point in points]
    for one in planned:
        if (family := one.plan.config.model.kind).answers_with_classes:
            raise UserError(f"general benchmarks ask questions, and a {family.title} answers none (model)")
        list_runs(one.plan, one.request)  # wrong keys are reported before what is missing
    predict.check_sources([one.plan for one in planned])
    predict.check_devices([one.plan for one in planned])
    unfinished = [one for one in planned if any(not address.is_complete() for address, _ in one.tasks)]
    if unfinished:
        require_bases([one.plan for one in unfinished])
        try:
            python = find_environment(unfinished[0].request.environment)
            for one in unfinished:
                run_unfinished(one, python)
        except UserError as error:
            is_small = unfinished[0].plan.config.model.base is not None
            raise UserError(f"{error}\n{DRAWN}" if is_small else str(error)) from error
    print_scores(planned)


def run_unfinished(one: GeneralPlan, python: Path) -> None:
    """Export the model and run the unfinished tasks; the checkpoint is removed after the last."""
    trainer, model = one.plan.config.trainer, one.checkpoint.path
    run_one = partial(run_task, include=one.include, device=trainer.device, processes=trainer.processes)
    export(one)
    for address, run in one.tasks:
        run_stage(address, partial(run_one, run=run, checkpoint=model, python=python))
    if not one.request.keep_checkpoint:
        one.checkpoint.manifest.unlink(missing_ok=True)  # first, so that half a checkpoint never counts
        shutil.rmtree(one.checkpoint.path, ignore_errors=True)


def export(one: GeneralPlan) -> None:
    """Write base + source as one model."""
    if one.checkpoint.is_complete():
        return

    def work(folder: Path) -> dict[str, Any]:
        from llava_ext.exported_processor import set_processor
        from robustmerge.formats.full_model import export_model

        export_model(one.plan.base.path, one.source.adapter, folder)
        set_processor(folder, one.plan.config.model.template, one.request.image)
        return {}

    print(f"exporting {one.source.label} as a whole model: {format_path(one.checkpoint.path)}", flush=True)
    run_stage(one.checkpoint, work)


def print_scores(planned: Sequence[GeneralPlan]) -> None:
    """Print the scores of the sources, notes on them, and the paper's table 3."""
    rows = []
    for one in planned:
        scores = {run.task: read_score(address.path / "score.json") for address, run in one.tasks}
        rows.append(GeneralResult(one.source.label, one.source.kind, scores))
    table = general_table(rows, planned[0].plan.config.bootstrap)
    if table is None:
        raise UserError("no task was asked (tasks_general)")
    titles = {name: read_method(name).title for name in list_methods()}
    print("", format_text(table), *general_notes(rows), "", sep="\n")
    print(format_text(published_general_table(PUBLISHED, titles | TITLES)))
    print(f"answers and logs: {', '.join(format_path(one.plan.root / one.folder) for one in planned)}")
