"""Results at Weights & Biases: a group for each line, a run for each result. The only module that imports wandb.

A line is what one configuration makes of one set of experts. A run's id comes from the identity of its result, so that
no result has two runs. Only the parent process logs, at the end of a program, from what the stages have written; what a
training writes it logs earlier, too (`wandb_live`). A failure is a warning: a marker in the run folder tells what was
logged, and the next such program logs the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval.settings import Logger
from llava_ext.settings import LOSSES
from pipeline.plan import Evaluation, Plan, group_by_source
from pipeline.terminal import format_path
from pipeline.words import format_command
from robustmerge.stage.address import Address, commit, read_manifest
from robustmerge.stage.files import read_text, write_atomically
from robustmerge.stage.records import read_score
from robustmerge.stage.text import one_line

if TYPE_CHECKING:
    import wandb

    from eval.report.assemble import Report  # loads matplotlib, which training does without
    from eval.report.tables import Table

STAGES = ("train", "merge")  # whose results have a run each; all scores of a source are one run
ID_LENGTH = 16  # digits; the first eight are those in an address
FINISH_SECONDS = {False: 60.0, True: 600.0}  # that sending one run may take, without artifacts and with them


@dataclass(frozen=True)
class Run:
    """One run of W&B.

    stage: train, merge, score or report. read: returns what is logged step by step, and the summary; called where wandb
    is loaded. adapter: the folder that may be its artifact. version: of contents that can change while the id stays.
    """

    id: str
    stage: str
    name: str
    group: str
    config: Mapping[str, Any]
    read: Callable[[], tuple[list[dict[str, Any]], dict[str, float]]]
    adapter: Path | None = None
    version: str = ""


def log_results(plans: Sequence[Plan], reports: Sequence[tuple[Path, Report]] = ()) -> None:
    """Log what is trained, and with reports what is merged and scored, too, as far as it is not logged already."""
    logger = plans[0].config.logger
    if not is_wanted(logger):
        return
    for root in dict.fromkeys(plan.root for plan in plans):
        alike = [plan for plan in plans if plan.root == root]
        runs = [run for plan in alike for run in _list_runs(plan, with_scores=bool(reports))]
        runs += [_describe_report(alike, folder, report) for folder, report in reports if root in folder.parents]
        _log_missing(list({run.id: run for run in runs}.values()), logger, root)


def is_wanted(logger: Logger) -> bool:
    """Whether anything is logged at all."""
    return logger.name != "none" and os.environ.get("WANDB_MODE") != "disabled"


def _list_runs(plan: Plan, with_scores: bool) -> Iterator[Run]:
    scored = group_by_source(plan.evaluations) if with_scores else []
    for address in (*plan.trained_models, *(evaluations[0].source.address for evaluations in scored)):
        if address.identity["stage"] in STAGES and address.is_complete():
            yield _describe_result(plan, address)
    yield from map(_describe_scores, scored)


def _describe_result(plan: Plan, address: Address) -> Run:
    return describe_run(plan, address, read_manifest(address.manifest)["record"])


def describe_run(plan: Plan, address: Address, record: Mapping[str, Any]) -> Run:
    """The run of what is trained or merged. record: of its manifest, or what is known before there is one."""
    config = {**_describe_line([plan]), **_describe_address(address), "commit": record.get("commit")}
    read = partial(_read_result, address.path / LOSSES, record)
    group, run_id = _name_group([plan]), address.fingerprint[:ID_LENGTH]
    return Run(run_id, address.identity["stage"], address.short, group, config, read, adapter=address.path)


def _read_result(losses: Path, record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    lines = read_text(losses, "the losses of a training").splitlines() if losses.exists() else []
    numbers = {key: value for key, value in record.items() if type(value) in (int, float)}
    return [json.loads(line) for line in lines], numbers


def _describe_scores(evaluations: Sequence[Evaluation]) -> Run:
    """The run of a source's scores on all of its tasks; the experts are one, each on its own task."""
    plan, source = evaluations[0].plan, evaluations[0].source
    is_one = source.kind != "expert"
    name, label = (source.folder, source.label) if is_one else ("individual", "individual")
    config = {
        **_describe_line([plan]),
        "source": label,
        **(_describe_address(source.address) if is_one else {}),
        "score": {one.task.name: one.score.identity["settings"] for one in evaluations},
    }
    run_id = _hash([one.score.fingerprint for one in evaluations])[:ID_LENGTH]
    return Run(run_id, "score", f"scores/{name}", _name_group([plan]), config, partial(_read_scores, evaluations))


def _read_scores(evaluations: Sequence[Evaluation]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    scores = [(one.task, read_score(one.score.path).value) for one in evaluations]
    summary = {task.name: value for task, value in scores if value is not None}
    for average, seen in (("seen_avg", True), ("unseen_avg", False)):
        names = [task.name for task, _ in scores if task.seen == seen and not task.general]
        if names and summary.keys() >= set(names):
            summary[average] = fmean(summary[name] for name in names)
    return [], summary


def _describe_report(plans: Sequence[Plan], folder: Path, report: Report) -> Run:
    group, name = _name_group(plans), f"reports/{folder.name}"
    config = {**_describe_line(plans), "overrides": [plan.overrides for plan in plans], **commit()}
    version = _hash([report.tables, report.examples])
    run_id = _hash([group, name])[:ID_LENGTH]
    return Run(run_id, "report", name, group, config, partial(_read_report, report), version=version)


def _read_report(report: Report) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All tables, figures and examples; the averages as the summary, with keys like `seen_avg/RobustMerge`."""
    figures = {name: content for name, content in report.files.items() if Path(name).match("figures/*.png")}
    shown = {name: _make_table(table) for name, table in report.tables.items()}
    shown |= {name.removesuffix(".png"): _make_image(content) for name, content in figures.items()}
    shown |= {"examples": _make_examples(report)} if report.examples else {}
    main = report.tables["main"]
    averages = {
        f"{column.key}/{row.title}": cell.value
        for row in main.rows
        for column, cell in zip(main.columns, row.cells, strict=True)
        if column.is_average and cell.value is not None
    }
    return [shown], averages


def _make_table(table: Table) -> Any:
    """The table for W&B, with numbers where there are any, so that it can sort and plot."""
    import wandb

    rows = []
    for row in table.rows:
        cells = zip(row.cells, table.columns, strict=True)
        rows.append([row.title, *(cell.text if column.is_text else cell.value for cell, column in cells)])
    return wandb.Table(columns=[table.head, *(column.title for column in table.columns)], data=rows)


def _make_examples(report: Report) -> Any:
    """The questions that the report shows, with picture, as a table for W&B; a column for each source's answers."""
    import wandb

    shown = [(task, question) for task, questions in report.examples.items() for question in questions]
    sources = list(dict.fromkeys(answer.source for _, question in shown for answer in question.answers))
    rows = []
    for task, question in shown:
        answers = {answer.source: answer.text for answer in question.answers}
        picture = _make_image(question.picture) if question.picture else None
        rows.append([task, picture, question.text, question.expected, *map(answers.get, sources)])
    return wandb.Table(columns=["Task", "Picture", "Question", "Expected", *sources], data=rows)


def _make_image(content: bytes) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(content)))


def _describe_line(plans: Sequence[Plan]) -> dict[str, Any]:
    config = plans[0].config
    seeds = sorted({plan.config.seed for plan in plans if plan.config.trains})
    names = {"benchmark": config.benchmark.name, "model": config.model.name, "profile": config.profile}
    return {**names, "seed": seeds[0] if len(seeds) == 1 else seeds}


def _describe_address(address: Address) -> dict[str, Any]:
    """The address, and the settings in its identity under the name of their stage."""
    return {"address": address.short, address.identity["stage"]: address.identity.get("settings")}


def _name_group(plans: Sequence[Plan]) -> str:
    """The name of the line: benchmark and model, and a hash of the experts."""
    experts = sorted({expert.fingerprint for plan in plans for expert in plan.experts.values()})
    return f"{plans[0].root.name}-{_hash(experts)[:8]}"


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _log_missing(runs: Sequence[Run], logger: Logger, root: Path) -> None:
    """Log the runs whose marker is missing or of another version; the first failure is a warning and ends it."""
    folder = root / "wandb"
    markers = [(run, folder / "logged" / run.id, _hash([run.version, logger])) for run in runs]
    waiting = [(run, file, text) for run, file, text in markers if not (file.exists() and file.read_text() == text)]
    place = None
    for done, (run, file, text) in enumerate(waiting):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            place = _log(run, logger, root)
            write_atomically(file, text)
        except Exception as error:  # the result exists already: nothing that fails here may spoil the program
            print(
                f"warning: {len(waiting) - done} of {len(waiting)} results were not logged to W&B; the next "
                f"train_all, merge_eval or report logs them: {type(error).__name__}: {one_line(str(error))}"
            )
            return
    if waiting:
        send = format_command(["wandb", "sync", format_path(folder)])
        print(f"W&B: {len(waiting)} runs, {place or f'offline; this sends all that are there: {send}'}")


def _log(run: Run, logger: Logger, root: Path) -> str | None:
    """Log a run whole, whatever is there of it; return the address of its project, None if offline."""
    history, summary = run.read()
    with begin_run(run, logger, root) as started:
        for values in history:
            step = values.pop("step", None)
            if step is None or step >= started.starting_step:  # the steps before are there, logged while it trained
                started.log(values, step=step)
        started.summary.update(summary)
        if logger.artifacts and run.adapter is not None:
            import wandb

            artifact = wandb.Artifact(run.adapter.name, type="adapter")
            artifact.add_dir(str(run.adapter), policy="immutable")
            started.log_artifact(artifact)
        return None if started.offline else started.project_url


def end_service() -> None:
    """End W&B's own process after a failure: a run that it could not begin or end would stay in use there."""
    import wandb

    with contextlib.suppress(Exception):  # it may have ended by itself
        wandb.teardown()


def begin_run(run: Run, logger: Logger, root: Path) -> wandb.Run:
    """Begin a run, or online go on with it; what an earlier try has left offline is removed."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    folder = root / "wandb"
    mode: Any = logger.mode  # wandb checks what WANDB_MODE holds
    if mode == "auto":  # the user's own WANDB_MODE first; no key, no network
        mode = os.environ.get("WANDB_MODE")
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    for earlier in folder.glob(f"*-{run.id}"):
        shutil.rmtree(earlier)
    os.environ["WANDB_DATA_DIR"] = str(folder / f"data-{run.id}")  # of pictures in tables, not sent yet
    return wandb.init(
        project=logger.project,
        entity=logger.entity,
        id=run.id,
        name=run.name,
        group=run.group,
        job_type=run.stage,
        config=dict(run.config),
        dir=str(root),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",  # several experts train side by side
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            init_timeout=30,
            finish_timeout=FINISH_SECONDS[logger.artifacts],
            finish_timeout_raises=True,
            x_disable_stats=True,  # of this process, which did not do the work
            x_disable_machine_info=True,
            x_save_requirements=False,  # takes longer than all the rest; manifests hold the versions
        ),
    )
