"""The report stage: one report per run folder from the scores on disk, over all points of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.report.assemble import Report, assemble_report, format_summary, write_report
from eval.report.results import CHOSEN, SEARCHED, Search, SourceResult, SweptKey, Training
from pipeline.general_results import general_addresses
from pipeline.losses import read_training
from pipeline.plan import Evaluation, Plan, group_by_source
from pipeline.sources import Source
from pipeline.stages.report_context import make_context, read_general
from pipeline.sweep import find_ordered_key, find_point_keys, is_of_method
from pipeline.terminal import format_path, format_seconds
from pipeline.weight_search import Found
from robustmerge.stage.address import Address, settings_in_identity
from robustmerge.stage.files import write_atomically
from robustmerge.stage.records import read_score

# Switches of training whose values have a title.
FACETS = {"peft.shared_a_init": {"true": "shared A", "false": "independent A"}}
UNNAMED = ("paths.", "logger", "jobs", "merge_device", "report", "pdf", "profile", "hydra.", "benchmark=", "model=")


def report(plans: Sequence[Plan]) -> list[tuple[Path, Report]]:
    """Write the reports of a sweep; returns folders and contents."""
    return [_report_one(root, alike) for root, alike in group_by_report(plans)]


def group_by_report(plans: Sequence[Plan]) -> list[tuple[Path, Sequence[Plan]]]:
    """The points of each report, with its run folder: one report per run folder, and one over all models."""
    roots = {plan.root: [other for other in plans if other.root == plan.root] for plan in plans}
    groups: list[tuple[Path, Sequence[Plan]]] = list(roots.items())
    is_one_benchmark = len({plan.config.benchmark.name for plan in plans}) == 1
    return [*groups, (plans[0].root, plans)] if len(roots) > 1 and is_one_benchmark else groups


def _report_one(root: Path, plans: Sequence[Plan]) -> tuple[Path, Report]:
    folder = root / "reports" / name_report(plans)
    context = replace(make_context(folder.name, plans), general=read_general(plans))
    contents = assemble_report(collect_results(plans), context)
    folder.mkdir(parents=True, exist_ok=True)
    used = {address.short for plan in plans for address in _addresses(plan)}
    used |= {address for plan in plans for address in general_addresses(plan)}
    write_atomically(folder / "addresses.json", json.dumps(sorted(used), indent=1) + "\n")
    write_report(folder, contents)
    return folder, contents


def name_report(plans: Sequence[Plan]) -> str:
    """The name of a report: `report=`, else `main` for the default configuration, else the overrides."""
    config, several_models = plans[0].config, len({plan.root for plan in plans}) > 1
    if config.report:
        return config.report + ("-models" if several_models else "")
    values: dict[str, list[str]] = {}
    for key, value in (pair for plan in plans for pair in plan.overrides.items()):
        is_named = not f"{key}=".startswith(UNNAMED) or (key == "model" and several_models)
        if is_named and value not in values.setdefault(key, []):
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
    def seeds(self) -> Sequence[int | None]:
        """The seeds that experts were trained with, or that drew which are merged; None if it depends on neither."""
        config = self.plan.config
        if config.merge_count is not None and self.source.kind == "merged":
            return sorted({plan.config.seed for plan in self.plans})  # two of them may draw the same experts
        return [config.seed if config.trains and self.source.kind != "zero_shot" else None]


def collect_results(
    plans: Sequence[Plan], list_evaluations: Callable[[Plan], Sequence[Evaluation]] = lambda plan: plan.evaluations
) -> list[SourceResult]:
    """The scores of all sources, each once, in the order of the points.

    A source that several points share is labelled only with what is the same in all of them. list_evaluations: those
    of a plan whose scores are read.
    """
    entries: dict[tuple[str, ...], _Entry] = {}
    for plan in plans:
        for evaluations in group_by_source(list_evaluations(plan)):
            source = evaluations[0].source
            key = (source.kind, source.variant, *(one.score.fingerprint for one in evaluations))
            entries.setdefault(key, _Entry(evaluations)).plans.append(plan)
    # What changes every merge is named even where it is the same at all points.
    keys = {*find_point_keys(plans), *(key for plan in plans for key in plan.overrides if _is_of_merges(key))}
    ordered = find_ordered_key(plans)
    results = [(_make_result(entry, keys, ordered), entry.seeds) for entry in entries.values()]
    return [replace(result, seed=seed) for result, seeds in results for seed in seeds]


def _make_result(entry: _Entry, keys: Collection[str], ordered: SweptKey | None) -> SourceResult:
    plan, source = entry.plan, entry.source
    others = [(one.task.name, other.score) for one in entry.evaluations if (other := one.with_other_protocol())]
    addresses = {one.source.address.path: one.source.address.short for one in entry.evaluations}
    point = _shared_point(entry.plans, keys)
    if source.method is None:
        point = {key: value for key, value in point.items() if not _is_of_merges(key)}
    facets = {key: title for key, value in point.items() if (title := _name_facet(key, value, ordered))}
    common: dict[str, Any] = {
        "facet": ", ".join(facets.values()),
        "swept": point.get(ordered.key, "") if ordered else "",
        "overrides": {key.removeprefix("merge."): value for key, value in point.items() if key not in facets},
        "scores": {one.task.name: read_score(one.score.path) for one in entry.evaluations},
        "other_scores": {task: read_score(score.path) for task, score in others if score.is_complete()},
        "predictions": {one.task.name: one.predictions.path for one in entry.evaluations},
        "address": ", ".join(addresses.values()),
        "trainings": _read_trainings(entry),
    }
    if source.kind == "expert":  # one row: each expert on its own task
        return SourceResult("individual", "individual", "Individual", **common)
    method = source.method
    if method is None:
        return SourceResult(source.name, source.kind, source.title, **common)
    settings = settings_in_identity(method)
    return SourceResult(
        source=source.label if source.variant == SEARCHED else source.name,
        kind=source.kind,
        title=source.title,
        settings={key: value for key, value in settings.items() if key != "name"},
        paper=method.paper,
        method=method.name,
        variant=CHOSEN if source.variant else "",
        choice=plan.choices[method.name] if source.variant == CHOSEN else None,
        search=_summarize(plan.searches[method.name]) if source.variant == SEARCHED else None,
        **common,
    )


def _read_trainings(entry: _Entry) -> dict[str, Training]:
    """The trainings whose losses are at hand: by task for an entry's experts, or that of the multi-task model."""
    of_experts = entry.source.kind == "expert"
    models = {one.task.name if of_experts else one.source.name: one.source.address for one in entry.evaluations}
    return {name: training for name, address in models.items() if (training := read_training(address)) is not None}


def _is_of_merges(key: str) -> bool:
    """Whether a key says how experts are merged, so that it labels merged models alone."""
    return is_of_method(key) or key == "merge_count"


def _summarize(found: Found) -> Search:
    return Search(found.weights, found.factor, found.mean, found.start, len(found.tried))


def _shared_point(plans: Sequence[Plan], keys: Collection[str]) -> dict[str, str]:
    """Those of the keys that have the same value in all these points."""
    first, *rest = [{key: value for key, value in plan.overrides.items() if key in keys} for plan in plans]
    return {key: value for key, value in first.items() if all(point.get(key) == value for point in rest)}


def _name_facet(key: str, value: str, ordered: SweptKey | None) -> str:
    """The title of the points with this value, if merged models are to be compared at each of them apart; else ""."""
    if ordered is not None and key == ordered.key:
        return ordered.titles[value] if ordered.is_facet else ""
    return FACETS.get(key, {}).get(value.lower(), "")


def _addresses(plan: Plan) -> Iterator[Address]:
    """The addresses of all results that a report rests on."""
    yield from plan.base_addresses
    yield from (plan.data(task) for task in plan.config.tasks)
    yield from plan.experts.values()
    yield from plan.choosing_addresses()
    for one in plan.evaluations:
        yield from (one.source.address, one.predictions, one.score)
        if (other := one.with_other_protocol()) and other.score.is_complete():
            yield other.score


def print_reports(reports: Sequence[tuple[Path, Report]], started: float) -> None:
    """Print the main table of every report and the report's path."""
    for folder, contents in reports:
        print(f"\n{format_summary(contents)}\n\nreport: {format_path(folder / 'report.md')} (and report.html)")
    print(f"took {format_seconds(time.monotonic() - started)}; everything that exists: python scripts/runs.py")
