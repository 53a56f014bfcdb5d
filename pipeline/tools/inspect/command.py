"""Inspection of experts: which adapters the command line names, and the files that are written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.plan import Plan
from pipeline.stages import merge
from pipeline.sweep import make_plan_with
from pipeline.terminal import format_path
from robustmerge.hub.places import split_name
from robustmerge.stage.files import expand, write_atomically
from robustmerge.stage.settings import ConfigError, Problem, UserError, refuse
from robustmerge.stage.tables import format_csv

TABLES = ("experts", "modules", "kinds", "spectra", "pairs", "merged")


@dataclass(frozen=True)
class InspectRequest:
    """The keys of inspect_adapters.py.

    merged: a source or adapter folder, or a list of them, each as NAME:FOLDER where it needs a name.
    out: the folder of picture and tables. density: of the pruning that is shown.
    """

    merged: str | tuple[str, ...] | None = None
    out: str | None = None
    density: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(Problem(f"density must be in (0, 1], got {self.density}", "density"))


def read_request(point: Mapping[str, Any]) -> tuple[Plan, InspectRequest]:
    """The plan and the program's own keys. Raises ConfigError with the problems of both."""
    return make_plan_with(InspectRequest, point)


def inspect(point: Mapping[str, Any]) -> None:
    """Measure, print the tables and conclusions, and write them with a figure to the folder."""
    plan, request = read_request(point)
    experts, merged = find_experts(plan), find_merged(plan, request)

    from robustmerge.analysis.inspection import inspect_folders

    inspection = inspect_folders(experts, merged, request.density)

    from pipeline.tools.inspect.figure import draw_inspection
    from robustmerge.analysis.inspection_text import format_inspection

    text, picture = format_inspection(inspection), draw_inspection(inspection)
    folder = expand(request.out) if request.out else plan.root / "inspection"
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        write_atomically(folder / f"{name}.csv", format_csv(getattr(inspection, name)))
    write_atomically(folder / "inspection.json", json.dumps(dataclasses.asdict(inspection), indent=1) + "\n")
    write_atomically(folder / "inspection.txt", text + "\n")
    write_atomically(folder / "inspection.png", picture.png)
    print(
        f"{text}\n\npicture: {format_path((folder / 'inspection.png').absolute())} (beside it the tables, CSV and JSON)"
    )


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
            problems.append(Problem(f"'{entry}' is no adapter folder yet: merge the experts first", "merged"))
        if name in folders:
            problems.append(Problem(f"two merged adapters are called '{name}'; name them as name:folder", "merged"))
        folders[name] = source.address.path
    refuse(problems)
    return folders
