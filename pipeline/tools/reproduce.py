"""Everything of the paper that a laptop can make: one experiment after the other, each in processes of its own.

README.md          what was made, by which command, and what was not
scores.tar.xz      every score that the reports rest on, and the answers that they show
<step>/            the report of a step: report.md, report.html, report.json, tables, figures
"""

from __future__ import annotations

import dataclasses
import io
import json
import lzma
import math
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
from pipeline.plan import Plan
from pipeline.program import start_of
from pipeline.sweep import make_plan_with
from pipeline.terminal import format_path, format_seconds
from pipeline.words import format_command
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import expand, write_atomically
from robustmerge.stage.records import format_predictions, read_predictions
from robustmerge.stage.settings import ConfigError, Problem, UserError, build, suggest

NOT_SHOWN = ("addresses.json", "gallery.html")  # of a report


@dataclass(frozen=True)
class Step:
    """One experiment.

    about: of the paper; programs: in their order, with these words; minutes: about, on two cores. folder: of a run, in
    which a folder of the step's name comes of it; page: in that, what to look at first.
    """

    about: str
    words: tuple[str, ...]
    minutes: float
    programs: tuple[str, ...] = ("train_all", "merge_eval")
    folder: str = "reports"
    page: str = "report.md"


@dataclass(frozen=True)
class Reproduction:
    """The keys of reproduce.py.

    steps: by name; only: a subset of them; to: the folder of the reports; missing: of the paper, why it is not made.
    """

    steps: dict[str, dict[str, Any]]
    only: tuple[str, ...] | None = None
    to: str | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [Problem(f"unknown step '{name}'; {suggest(name, self.steps)}", "only") for name in self.unknown]
        if problems:
            raise ConfigError(*problems)
        for name in self.steps:
            build(Step, self.steps[name], f"steps.{name}")

    @property
    def unknown(self) -> list[str]:
        return [name for name in self.only or () if name not in self.steps]

    @property
    def chosen(self) -> dict[str, Step]:
        """The steps to be made, by name."""
        return {
            name: build(Step, values, f"steps.{name}")
            for name, values in self.steps.items()
            if self.only is None or name in self.only
        }


def reproduce(points: Sequence[Mapping[str, Any]]) -> None:
    """Make every step, copy its report, and write the page that says what was made. Ends at the first that fails."""
    if len(points) > 1:
        raise UserError("reproduce.py makes sweeps of its own: leave out -m")
    plan, request = make_plan_with(Reproduction, points[0])
    own = {field.name for field in dataclasses.fields(request)}
    words = [word for word in points[0]["overrides"] if word.partition("=")[0].partition(".")[0] not in own]
    folder, started = find_folder(plan, request), time.monotonic()
    for place, (name, step) in enumerate(request.chosen.items()):
        print(f"\n{describe_progress(list(request.chosen.values()), place, time.monotonic() - started)}", flush=True)
        for program in step.programs:
            run_program(program, name, [*step.words, *words])
        copy_report(plan.root / step.folder / name, folder / name)
    write_archive(plan.root.parent, list(request.chosen), folder / "scores.tar.xz")
    write_atomically(folder / "README.md", format_page(plan, request, words))
    took = format_seconds(time.monotonic() - started)
    print(f"\nreproduce: {len(request.chosen)} steps in {took}; what was made: {format_path(folder / 'README.md')}")


def find_folder(plan: Plan, request: Reproduction) -> Path:
    """Where the reports go: `to`, else under results/, but a smoke run's beside its own results."""
    if request.to:
        return expand(request.to).absolute()
    parent = plan.root if plan.config.profile == "smoke" else REPOSITORY / "results" / plan.root.name
    return parent / "reproduced"


def describe_progress(steps: Sequence[Step], place: int, elapsed: float) -> str:
    """Which step begins, and how many minutes are left by the speed so far, or before that by what is known of them."""
    done, left = (sum(step.minutes for step in part) for part in (steps[:place], steps[place:]))
    minutes = left * (elapsed / 60 / done if done else 1)
    count = f"reproduce: step {place + 1} of {len(steps)}, {steps[place].about}"
    return f"{count}; {format_seconds(elapsed)} so far, about {math.ceil(minutes)} min left"


def run_program(program: str, step: str, words: Sequence[str]) -> None:
    """Run one program of a step. Raises UserError naming it where it fails."""
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{program}.py"), *words, f"report={step}", "pdf=true"]
    if subprocess.run(command, check=False).returncode:
        typed = format_command([*start_of(program), *command[2:]])
        raise UserError(f"step {step} failed, as told above; the same command goes on there. It ran: {typed}")


def copy_report(report: Path, to: Path) -> None:
    """Copy a report, in place of an earlier copy; of a sweep over models the one of all of them."""
    of_models = report.with_name(f"{report.name}-models")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(of_models if of_models.is_dir() else report, to, ignore=shutil.ignore_patterns(*NOT_SHOWN))


def write_archive(runs: Path, reports: Sequence[str], file: Path) -> None:
    """Write every score that the reports rest on, and those answers that they show, so that no model is needed again.

    The same results give the same bytes. Unpack it in the folder of all runs.
    """
    lists = sorted(list_file for name in reports for list_file in runs.glob(f"*/reports/{name}/addresses.json"))
    used = {list_file.parents[2] / short for list_file in lists for short in json.loads(list_file.read_text())}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(path for path in used if path.is_file()):
            kind, split, *_ = path.relative_to(runs).parts[1:]
            manifest = path.with_suffix(".manifest.json")
            if kind == "scores":
                _add(archive, path.relative_to(runs), path.read_bytes())
                _add(archive, manifest.relative_to(runs), manifest.read_bytes())
            elif kind == "predictions" and split != "val":
                _add(archive, path.relative_to(runs), _keep_shown(path))
    write_atomically(file, lzma.compress(buffer.getvalue()))


def _add(archive: tarfile.TarFile, name: Path, content: bytes) -> None:
    info = tarfile.TarInfo(name.as_posix())  # of no time and no owner
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _keep_shown(answers: Path) -> bytes:
    """The answers of a file that reports show."""
    return format_predictions(first_by_hash(read_predictions(answers), EXAMPLES_A_TASK)).encode()


def format_page(plan: Plan, request: Reproduction, words: Sequence[str]) -> str:
    """The page on which number can be trusted for what: what was made here, by which command, and what was not."""
    config = plan.config
    size = f" of {config.model.parameters / 1e6:.1f} million parameters" if config.model.parameters else ""
    is_papers = config.benchmark.name == "mm_mergebench" and config.model.base is None
    state = "run with the paper's model and data" if is_papers else "made here, small model, drawn tasks"
    lines = [
        f"# What of the paper is made here: {escape_markdown(plan.root.name)}\n",
        SMOKE if config.profile == "smoke" else "",
        f"Model {escape_code(config.model.name)}{size}, benchmark {escape_code(config.benchmark.name)}. Every number "
        "of these reports was measured by the command beside it; published values stand apart, marked as such.\n",
        "| of the paper | here | command |",
        "| --- | --- | --- |",
    ]
    for name, step in request.chosen.items():
        commands = [[*start_of(program), *step.words, *words] for program in step.programs]
        typed = " && ".join(escape_code(format_command(command)) for command in commands)
        lines.append(f"| {escape_markdown(step.about)} | [{state}]({name}/{step.page}) | {typed} |")
    lines += [
        f"| {escape_markdown(what)} | {escape_markdown(why)} | {MISSING} |" for what, why in request.missing.items()
    ]
    again = format_command([*start_of("reproduce"), *words])
    return "\n".join([*lines, f"\nAll of it: {escape_code(again)}.", ""])
