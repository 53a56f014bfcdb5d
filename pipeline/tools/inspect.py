"""Inspection of experts: which adapters the command line names, and the files that are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.plan import Plan
from pipeline.program import merge_command
from pipeline.stages import merge
from pipeline.sweep import make_plan_with
from pipeline.terminal import format_path
from robustmerge.hub.places import split_name
from robustmerge.stage.files import expand
from robustmerge.stage.settings import Problem, UserError, refuse, suggest

FIGURES = ("figure3", "figure7", "figure8")


@dataclass(frozen=True)
class InspectRequest:
    """The keys of inspect_adapters.py.

    merged: a source or adapter folder, or a list of them, each as NAME:FOLDER where it needs a name.
    out: the folder of pictures and tables. figure: only this one. density: of the pruning that is shown. kind: of the
    modules that are shown layer by layer. full: a delta folder.
    """

    merged: str | tuple[str, ...] | None = None
    out: str | None = None
    figure: str | None = None
    density: float = 0.2
    kind: str | None = None
    full: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.density <= 1:
            problems.append(Problem(f"density must be in (0, 1], got {self.density}", "density"))
        if self.figure not in (None, *FIGURES):
            problems.append(Problem(f"unknown figure '{self.figure}'; {suggest(self.figure, FIGURES)}", "figure"))
        refuse(problems)


def read_request(point: Mapping[str, Any]) -> tuple[Plan, InspectRequest]:
    """The plan and the program's own keys. Raises ConfigError with the problems of both."""
    return make_plan_with(InspectRequest, point)


def inspect(point: Mapping[str, Any]) -> None:
    """Measure, print the tables and conclusions, and write them with the figures to the folder; or one figure alone."""
    plan, request = read_request(point)
    experts, merged = find_experts(plan), find_merged(plan, request)

    from robustmerge.analysis.figure_tables import write_captions
    from robustmerge.analysis.inspection import inspect_folders
    from robustmerge.analysis.inspection_files import write_inspection
    from robustmerge.analysis.inspection_text import format_inspection

    full = expand(request.full) if request.full else None
    inspection = inspect_folders(experts, merged, request.density, request.kind, full)
    folder = expand(request.out) if request.out else plan.root / "inspection" / (request.figure or "")
    picture = write_inspection(inspection, folder, request.figure)
    text = write_captions(inspection)[request.figure] if request.figure else format_inspection(inspection)
    beside = "as SVG and its tables" if request.figure else "figures 3, 7 and 8, and the tables, CSV and JSON"
    print(f"{text}\n\npicture: {format_path(picture.absolute())} (beside it {beside})")


def find_experts(plan: Plan) -> dict[str, Path]:
    """Find the experts: `experts=`, or those that train_all.sh makes. Raises UserError if any is missing."""
    merge.check_experts([plan], multi_task=False)
    return {name: address.path for name, address in plan.experts.items()}


def find_merged(plan: Plan, request: InspectRequest) -> dict[str, Path]:
    """Find the merged adapters, by name. Raises UserError naming all that cannot be compared with the experts."""
    entries = (request.merged,) if isinstance(request.merged, str) else request.merged or ()
    folders: dict[str, Path] = {}
    problems: list[Problem] = []
    for entry in entries:
        name, place = split_name(entry)
        try:
            source = plan.find_source(place)
        except UserError as error:
            problems.append(Problem(str(error), "merged"))
            continue
        name = name or source.label.rpartition("/")[2]
        if source.adapter is None or not source.adapter.is_dir():
            problems.append(Problem(f"'{entry}' is no adapter folder yet; this makes it: {merge_command()}", "merged"))
        if name in folders:
            problems.append(Problem(f"two merged adapters are called '{name}'; name them as name:folder", "merged"))
        folders[name] = source.address.path
    refuse(problems)
    return folders
