"""Everything of the paper that a laptop can make: one experiment after the other, each in processes of its own.

README.md          what was made, by which command, and what was not
scores.tar.xz      every score, spectrum and loss that the reports rest on, and the answers that they show
<step>/            the report of a step: report.md, report.html, report.json, tables, figures

The archive is all that is needed to write the reports again (`from_scores`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import lzma
import math
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.questions import first_by_hash
from eval.report.examples import EXAMPLES_A_TASK
from eval.report.formats import escape_code, escape_markdown
from eval.report.sections import SMOKE
from eval.report.tables import MISSING
from llava_ext.settings import LOSSES
from pipeline.plan import Plan
from pipeline.program import start_of
from pipeline.sweep import make_plan_with
from pipeline.terminal import format_path, format_seconds
from pipeline.words import format_command
from robustmerge.analysis.inspection_files import INSPECTION, read_inspection, write_inspection
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import expand, require_file, write_atomically
from robustmerge.stage.records import format_predictions, read_predictions
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, suggest

COPIED = ("report.json", "figures.json")  # one of them is in every copy
INSPECTIONS = "inspection"  # the folder, in a run's, of figures that are drawn of adapters
OF_MODELS = "-models"  # behind the name of a report over several models
NOT_SHOWN = ("addresses.json", "gallery.html", INSPECTION)  # of a report
ARCHIVE = "scores.tar.xz"


@dataclass(frozen=True)
class Step:
    """One experiment.

    about: what it is in the paper; programs: run in this order with `words`; minutes: how many on two cores, about.
    folder: the one of a run in which the step makes a folder of its own name; page: the file in that to look at first;
    model: its name, if the words choose another one.
    """

    about: str
    words: tuple[str, ...]
    minutes: float
    programs: tuple[str, ...] = ("train_all", "merge_eval")
    folder: str = "reports"
    page: str = "report.md"
    model: str | None = None


@dataclass(frozen=True)
class Reproduction:
    """The keys of reproduce.py.

    steps: by name; only: a subset of them; to: the folder of the reports; from_scores: make the reports in it, or those
    of `only`, again from the scores in it, without a model; missing: what of the paper is not made, and why.
    """

    steps: dict[str, dict[str, Any]]
    only: tuple[str, ...] | None = None
    to: str | None = None
    from_scores: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [Problem(f"unknown step '{name}'; {suggest(name, self.steps)}", "only") for name in self.unknown]
        if problems:
            raise ConfigError(*problems)
        self.every_step  # noqa: B018  # raises if a step is invalid

    @property
    def unknown(self) -> list[str]:
        return [name for name in self.only or () if name not in self.steps]

    @property
    def every_step(self) -> dict[str, Step]:
        """All steps, by name."""
        return {name: build(Step, values, f"steps.{name}") for name, values in self.steps.items()}

    @property
    def chosen(self) -> dict[str, Step]:
        """The steps to be made, by name."""
        return {name: step for name, step in self.every_step.items() if self.only is None or name in self.only}


def reproduce(points: Sequence[Mapping[str, Any]]) -> None:
    """Make every step, copy its report, and write the page that says what was made. Ends at the first that fails."""
    if len(points) > 1:
        raise UserError("reproduce.py makes sweeps of its own: leave out -m")
    plan, request = make_plan_with(Reproduction, points[0])
    own = {field.name for field in dataclasses.fields(request)}
    words = [word for word in points[0]["overrides"] if re.split(r"[.=]", word.lstrip("+~"))[0] not in own]
    steps, folder, started = request.chosen, find_folder(plan, request), time.monotonic()
    for name in steps:
        check_copy(folder / name)
    if request.from_scores:
        if request.only is None:
            steps = {name: step for name, step in steps.items() if (folder / name).is_dir()}
        if not steps:
            raise UserError(f"no report of a step is in {folder}: name those to be made again (only)")
        unpack_archive(folder / ARCHIVE, plan.root.parent)
    reports: list[Path] = []
    for place, (name, step) in enumerate(steps.items()):
        print(f"\n{describe_progress(list(steps.values()), place, time.monotonic() - started)}", flush=True)
        if request.from_scores:
            make_again(plan.root.parent, name, step, words)
        else:
            for program in step.programs:
                run_program(program, name, [*step.words, *words])
        reports.append(find_report(plan.root.parent, name, step))
        copy_report(reports[-1], folder / name)
    write_archive(reports, folder / ARCHIVE)
    made = [name for name in request.every_step if (folder / name).is_dir()]
    write_atomically(folder / "README.md", format_page(plan, request, made, words))
    took = format_seconds(time.monotonic() - started)
    print(f"\nreproduce: {len(steps)} steps in {took}; what was made: {format_path(folder / 'README.md')}")


def find_folder(plan: Plan, request: Reproduction) -> Path:
    """Where the reports go: `to`, else under results/, but a smoke run's beside its own results."""
    if request.to:
        return expand(request.to).absolute()
    parent = plan.root if plan.config.profile == "smoke" else REPOSITORY / "results" / plan.root.name
    return parent / "reproduced"


def describe_progress(steps: Sequence[Step], place: int, elapsed: float) -> str:
    """Which step begins, and the minutes left at the speed so far, or at first by what the steps say."""
    done, left = (sum(step.minutes for step in part) for part in (steps[:place], steps[place:]))
    minutes = left * (elapsed / 60 / done if done else 1)
    count = f"reproduce: step {place + 1} of {len(steps)}, {steps[place].about}"
    return f"{count}; {format_seconds(elapsed)} so far, about {math.ceil(minutes)} min left"


def make_again(runs: Path, name: str, step: Step, words: Sequence[str]) -> None:
    """Write a step's report again from the scores, or its figure from the spectra, in the folder of all runs."""
    if step.folder == INSPECTIONS:
        folder = find_report(runs, name, step)
        write_inspection(read_inspection(folder / INSPECTION), folder, name)
        return
    run_program("prepare", name, [*step.words, *words])
    run_program("report", name, [*step.words, *words])


def run_program(program: str, step: str, words: Sequence[str]) -> None:
    """Run one program of a step. Raises UserError naming it where it fails."""
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{program}.py"), *words, f"report={step}", "pdf=true"]
    if subprocess.run(command, check=False).returncode:
        typed = format_command([*start_of(program), *command[2:]])
        raise UserError(f"step {step} failed, as told above; the same command goes on there. It ran: {typed}")


def check_copy(to: Path) -> None:
    """Raises UserError if anything but an earlier copy of a report is where the copy goes."""
    if to.exists() and not any((to / name).is_file() for name in COPIED):
        raise UserError(f"{to} is there and holds no report: nothing is removed; take another folder (to)")


def find_report(runs: Path, name: str, step: Step) -> Path:
    """The newest report of a step under any benchmark and model; for several models, the one over all of them."""
    folders = [folder for end in ("", OF_MODELS) for folder in runs.glob(f"*/{step.folder}/{name}{end}")]
    return max(folders, key=lambda folder: folder.stat().st_mtime_ns)


def copy_report(report: Path, to: Path) -> None:
    """Copy a report, in place of an earlier copy."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(report, to, ignore=shutil.ignore_patterns(*NOT_SHOWN))


def write_archive(reports: Sequence[Path], file: Path) -> None:
    """Add to the file every score that these reports rest on, losses, shown answers, and the spectra of figures.

    So no model is needed to make the reports again. The same results give the same bytes.
    """
    runs, lists = reports[0].parents[2], [one for report in reports for one in _list_addresses(report)]
    used = {one.parents[2] / short for one in lists for short in json.loads(one.read_text())}
    used |= {folder / LOSSES for folder in used if folder.parent.name == "experts"}
    before = _read_archive(file)
    members = dict(before)
    spectra = [report / INSPECTION for report in reports if (report / INSPECTION).is_file()]
    members |= {one.relative_to(runs).as_posix(): one.read_bytes() for one in spectra}
    for path in (path for path in used if path.is_file()):
        kind, split, *_ = path.relative_to(runs).parts[1:]
        manifest = path.with_suffix(".manifest.json")
        if path.name == LOSSES:
            members[path.relative_to(runs).as_posix()] = path.read_bytes()
        elif kind == "scores":
            members |= {one.relative_to(runs).as_posix(): one.read_bytes() for one in (path, manifest)}
        elif kind == "predictions" and split != "val":
            members[path.relative_to(runs).as_posix()] = _keep_shown(path)
    if members == before:  # compressing the same again takes half a minute
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(members):
            _add(archive, name, members[name])
    write_atomically(file, lzma.compress(buffer.getvalue()))


def unpack_archive(file: Path, runs: Path) -> None:
    """Put what the archive holds into the folder of all runs, where files that are there stay as they are.

    Raises UserError if there is no archive.
    """
    with tarfile.open(require_file(file, "the scores of reports")) as archive:
        for member in archive:
            if not (runs / member.name).exists():
                archive.extract(member, runs, filter="data")


def _list_addresses(report: Path) -> list[Path]:
    """The lists of what a report rests on, one per run folder; a report over all models has those of all."""
    root, name = report.parents[1], report.name.removesuffix(OF_MODELS)
    folders = f"{root.name.partition('-')[0]}-*" if name != report.name else root.name
    return sorted(root.parent.glob(f"{folders}/reports/{name}/addresses.json"))


def _read_archive(file: Path) -> dict[str, bytes]:
    """What an earlier run has written, by name."""
    if not file.exists():
        return {}
    with tarfile.open(file) as archive:
        return {info.name: one.read() for info in archive if (one := archive.extractfile(info)) is not None}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # without time or owner
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _keep_shown(answers: Path) -> bytes:
    """The answers of a file that reports show."""
    return format_predictions(first_by_hash(read_predictions(answers), EXAMPLES_A_TASK)).encode()


def format_page(plan: Plan, request: Reproduction, made: Sequence[str], words: Sequence[str]) -> str:
    """The page on which number can be trusted for what: what was made here, by which command, and what was not.

    made: names of the steps whose reports are there.
    """
    config = plan.config
    size = f" of {config.model.parameters / 1e6:.1f} million parameters" if config.model.parameters else ""
    lines = [
        f"# What of the paper is made here: {escape_markdown(plan.root.name)}\n",
        *([SMOKE] if config.profile == "smoke" else []),
        f"Model {escape_code(config.model.name)}{size}, benchmark {escape_code(config.benchmark.name)}. Every number "
        "of these reports was measured by the command beside it; published values stand apart, marked as such.\n",
        "| of the paper | here | command |",
        "| --- | --- | --- |",
    ]
    for name, step in request.every_step.items():
        commands = [[*start_of(program), *step.words, *words] for program in step.programs]
        typed = " && ".join(escape_code(format_command(command)) for command in commands)
        where = f"[made here, {escape_markdown(step.model or config.model.name)}]({name}/{step.page})"
        where = where if name in made else "not run"
        lines.append(f"| {escape_markdown(step.about)} | {where} | {typed} |")
    if config.model.base is not None:
        large = escape_code("bash scripts/reproduce.sh model=llava15_7b benchmark=mm_mergebench")
        lines.append(f"| Every table at 7B | not run here: it needs GPUs | {large} |")
    for what, why in request.missing.items():
        lines.append(f"| {escape_markdown(what)} | {escape_markdown(why)} | {MISSING} |")
    again = format_command([*start_of("reproduce"), *words])
    return "\n".join([*lines, f"\nAll of it: {escape_code(again)}.", ""])
