"""The report stage: one report per run folder from the scores on disk, over all points of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.report.assemble import assemble_report, format_summary, write_report
from eval.report.results import CHOSEN, SEARCHED, Context, Search, SourceResult, SweptKey
from pipeline.config import list_differences
from pipeline.general_results import general_addresses
from pipeline.plan import Evaluation, Plan
from pipeline.sources import Source
from pipeline.stages.report_context import make_context, read_general
from pipeline.sweep import find_ordered_key, find_swept_keys
from pipeline.terminal import format_path, format_seconds
from pipeline.weight_search import Found
from robustmerge.method import AnyMethod, list_methods, read_method
from robustmerge.stage.address import Address, settings_in_identity
from robustmerge.stage.files import write_atomically
from robustmerge.stage.records import read_score

# Switches of training whose values have a title.
FACETS = {"peft.shared_a_init": {"true": "shared A", "false": "independent A"}}
UNNAMED = ("paths.", "logger", "jobs", "merge_device", "report", "profile", "hydra.", "benchmark=", "model=")


def report(plans: Sequence[Plan]) -> list[tuple[Path, str]]:
    """Write the report of every run folder; returns each one's folder and its main table as text."""
    roots = {plan.root: [other for other in plans if other.root == plan.root] for plan in plans}
    return [_report_one(root, alike) for root, alike in roots.items()]


def _report_one(root: Path, plans: Sequence[Plan]) -> tuple[Path, str]:
    folder = root / "reports" / name_report(plans)
    context = replace(make_context(folder.name, plans), general=read_general(plans))
    contents = assemble_report(collect_results(plans), context)
    folder.mkdir(parents=True, exist_ok=True)
    used = {address.short for plan in plans for address in _addresses(plan)}
    used |= {address for plan in plans for address in general_addresses(plan)}
    write_atomically(folder / "addresses.json", json.dumps(sorted(used), indent=1) + "\n")
    write_report(folder, contents)
    _log(plans[0], folder, contents.tables, context)
    return folder, format_summary(contents)


def _log(plan: Plan, folder: Path, tables: Mapping[str, Any], context: Context) -> None:
    """Log the tables to W&B, unless the same ones were logged before."""
    if plan.config.logger.name == "none":
        return
    logged = folder / "wandb" / "logged"
    digest = hashlib.sha256(repr((tables, plan.config.logger)).encode()).hexdigest()
    if logged.exists() and logged.read_text() == digest:
        return
    from eval.report.wandb_log import log_report

    if log_report(plan.config.logger, folder, tables, context):
        write_atomically(logged, digest)


def name_report(plans: Sequence[Plan]) -> str:
    """The name of a report: `report=`, else `main` for the default configuration, else the overrides."""
    config = plans[0].config
    if config.report:
        return config.report
    values: dict[str, list[str]] = {}
    for key, value in (pair for plan in plans for pair in plan.overrides.items()):
        if not f"{key}=".startswith(UNNAMED) and value not in values.setdefault(key, []):
            values[key].append(value)
    words = [f"{key}={'_'.join(values[key])}" for key in sorted(values)]
    name = re.sub(r"[^\w.=-]+", "_", "-".join(words)).strip("_")
    return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if len(name) > 80 else name or "main"


@dataclass
class _Entry:
    """One entry of the tables: a source, or all experts. plans: the points of the sweep that share it."""

    evaluations: list[Evaluation]
    plans: list[Plan] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        return self.evaluations[0].plan

    @property
    def source(self) -> Source:
        return self.evaluations[0].source

    @property
    def seed(self) -> int | None:
        """The seed that the experts behind it were trained with; None if it rests on no training here."""
        return self.plan.config.seed if self.plan.config.trains and self.source.kind != "zero_shot" else None


def collect_results(
    plans: Sequence[Plan], list_evaluations: Callable[[Plan], Sequence[Evaluation]] = lambda plan: plan.evaluations
) -> list[SourceResult]:
    """The scores of all sources, each once, in the order of the points.

    What several points share is labelled only by what is the same in all of them. list_evaluations: those of a plan
    whose scores are read.
    """
    entries: dict[tuple[str, ...], _Entry] = {}
    for plan in plans:
        for evaluations in _group_by_source(list_evaluations(plan)):
            source = evaluations[0].source
            key = (source.kind, source.variant, *(one.score.fingerprint for one in evaluations))
            entries.setdefault(key, _Entry(evaluations)).plans.append(plan)
    keys = find_swept_keys(plans, ignored=("seed", "merge"))  # a method tells its own settings
    ordered = find_ordered_key(plans)
    return [_make_result(entry, keys, ordered) for entry in entries.values()]


def _group_by_source(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Group evaluations by source; the experts are one group, each on its own task, and come first."""
    experts = [one for one in evaluations if one.source.kind == "expert"]
    groups: dict[tuple[str, Path], list[Evaluation]] = {}
    for one in (one for one in evaluations if one.source.kind != "expert"):
        groups.setdefault((one.source.label, one.source.address.path), []).append(one)
    return [*([experts] if experts else []), *groups.values()]


def _make_result(entry: _Entry, keys: Sequence[str], ordered: SweptKey | None) -> SourceResult:
    plan, source = entry.plan, entry.source
    others = [(one.task.name, other.score) for one in entry.evaluations if (other := one.with_other_protocol())]
    addresses = {one.source.address.path: one.source.address.short for one in entry.evaluations}
    point = _shared_point(entry.plans, keys)
    facets = {key: title for key, value in point.items() if (title := _name_facet(key, value, ordered))}
    point = {key: value for key, value in point.items() if key not in facets}
    common: dict[str, Any] = {
        "facet": ", ".join(facets.values()),
        "scores": {one.task.name: read_score(one.score.path) for one in entry.evaluations},
        "other_scores": {task: read_score(score.path) for task, score in others if score.is_complete()},
        "predictions": {one.task.name: one.predictions.path for one in entry.evaluations},
        "address": ", ".join(addresses.values()),
        "seed": entry.seed,
    }
    if source.kind == "expert":  # one row: each expert on its own task
        return SourceResult("individual", "individual", "Individual", overrides=point, **common)
    method = source.method
    if method is None:
        return SourceResult(source.name, source.kind, source.title, overrides=point, **common)
    settings = settings_in_identity(method)
    return SourceResult(
        source=source.label if source.variant == SEARCHED else source.name,
        kind=source.kind,
        title=source.title,
        overrides={**point, **changed_settings(_configured(plan, method.name))},
        settings={key: value for key, value in settings.items() if key != "name"},
        paper=method.paper,
        method=method.name,
        variant=CHOSEN if source.variant else "",
        choice=plan.choices[method.name] if source.variant == CHOSEN else None,
        search=_summarize(plan.searches[method.name]) if source.variant == SEARCHED else None,
        **common,
    )


def _summarize(found: Found) -> Search:
    return Search(found.weights, found.factor, found.mean, found.start, len(found.tried))


def _shared_point(plans: Sequence[Plan], keys: Sequence[str]) -> dict[str, str]:
    """Those of the keys that have the same value in all these points."""
    first, *rest = [{key: value for key, value in plan.overrides.items() if key in keys} for plan in plans]
    return {key: value for key, value in first.items() if all(point.get(key) == value for point in rest)}


def _name_facet(key: str, value: str, ordered: SweptKey | None) -> str:
    """The title of the points with this value, if merged models are to be compared at each of them apart; else ""."""
    if ordered is not None and key == ordered.key:
        return ordered.facets[value]
    return FACETS.get(key, {}).get(value.lower(), "")


def _configured(plan: Plan, name: str) -> AnyMethod:
    """The method as the user configured it, at its default strength if the strength was chosen."""
    return next(method for method in plan.config.methods if method.name == name)


def changed_settings(method: AnyMethod) -> Mapping[str, Any]:
    """What differs from the method's own file, flat: `{"prune.density": 0.3}`."""
    if method.name not in list_methods():
        return {}
    published = settings_in_identity(read_method(method.name))
    return dict(list_differences(settings_in_identity(method), published))


def _addresses(plan: Plan) -> Iterator[Address]:
    """The addresses of all results that a report rests on."""
    yield from plan.base_parts
    yield from (plan.data(task) for task in plan.config.tasks)
    yield from plan.experts.values()
    yield from plan.choosing_addresses()
    for one in plan.evaluations:
        yield from (one.source.address, one.predictions, one.score)
        if (other := one.with_other_protocol()) and other.score.is_complete():
            yield other.score


def print_reports(reports: Sequence[tuple[Path, str]], started: float) -> None:
    """Print the main table of every report and the report's path."""
    for folder, table in reports:
        print(f"\n{table}\n\nreport: {format_path(folder / 'report.md')} (and report.html)")
    print(f"took {format_seconds(time.monotonic() - started)}; everything that exists: python scripts/runs.py")
