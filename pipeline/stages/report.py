"""From the scores on disk to a report: one a run folder, over all points of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.report.assemble import assemble_report, format_summary, write_report
from eval.report.results import Context, SourceResult
from eval.settings import Task
from pipeline.closing import _minutes, shown
from pipeline.config import differences
from pipeline.general_results import general_addresses
from pipeline.plan import Plan
from pipeline.program import read_overrides
from pipeline.sources import Source
from pipeline.stages.report_context import make_context, read_general
from robustmerge.method import Method, OutsideMethod, list_methods, read_method
from robustmerge.stage.address import Address, settings_in_identity
from robustmerge.stage.files import write_atomically
from robustmerge.stage.records import read_score

UNNAMED = ("paths.", "logger", "jobs", "report", "profile", "hydra.", "benchmark=", "model=")


@dataclass
class _Found:
    """A result before it has a label. sources: one, or every expert; lines: the points that share it."""

    plan: Plan
    sources: list[Source]
    plans: list[Plan] = field(default_factory=list)


def report(plans: Sequence[Plan]) -> list[tuple[Path, str]]:
    """Write the report of every run folder; returns each one's folder and its main table as text."""
    roots = {plan.root: [other for other in plans if other.root == plan.root] for plan in plans}
    return [_report_one(root, alike) for root, alike in roots.items()]


def _report_one(root: Path, plans: Sequence[Plan]) -> tuple[Path, str]:
    folder = root / "reports" / name_of(plans)
    context = replace(make_context(folder.name, plans), general=read_general(plans))
    made = assemble_report(collect(plans), context)
    folder.mkdir(parents=True, exist_ok=True)
    used = {address.short for plan in plans for address in _addresses(plan)}
    used |= {address for plan in plans for address in general_addresses(plan)}
    write_atomically(folder / "addresses.json", json.dumps(sorted(used), indent=1) + "\n")
    write_report(folder, made)
    _log(plans[0], folder, made.tables, context)
    return folder, format_summary(made)


def _log(plan: Plan, folder: Path, tables: Mapping[str, Any], context: Context) -> None:
    """To W&B, once for the same tables."""
    if plan.config.logger.name == "none":
        return
    logged = folder / "wandb" / "logged"
    digest = hashlib.sha256(repr((tables, plan.config.logger)).encode()).hexdigest()
    if logged.exists() and logged.read_text() == digest:
        return
    from eval.report.wandb_log import log_report

    if log_report(plan.config.logger, folder, tables, context):
        write_atomically(logged, digest)


def name_of(plans: Sequence[Plan]) -> str:
    """`report=`; otherwise `main` for the table as configured, and what was overridden for any other."""
    config = plans[0].config
    if config.report:
        return config.report
    values: dict[str, list[str]] = {}
    for key, value in (pair for plan in plans for pair in read_overrides(plan.config.overrides).items()):
        if not f"{key}=".startswith(UNNAMED) and value not in values.setdefault(key, []):
            values[key].append(value)
    words = [f"{key}={'_'.join(values[key])}" for key in sorted(values)]
    name = re.sub(r"[^\w.=-]+", "_", "-".join(words)).strip("_")
    return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if len(name) > 80 else name or "main"


def collect(plans: Sequence[Plan]) -> list[SourceResult]:
    """The scores of all sources, each once, in the order of the points.

    What several points share is labelled only by what is the same in all of them.
    """
    found: dict[tuple[str, ...], _Found] = {}
    for plan in plans:
        experts = [source for source in plan.sources if source.kind == "expert"]
        others = [[source] for source in plan.sources if source.kind != "expert"]
        for sources in [experts, *others] if experts else others:
            rests_on = [plan.score(source, task).fingerprint for source in sources for task in source.tasks]
            key = (sources[0].kind, sources[0].variant, *rests_on)
            found.setdefault(key, _Found(plan, sources)).plans.append(plan)
    swept = _swept_keys(plans)
    return [_result(one, swept) for one in found.values()]


def _swept_keys(plans: Sequence[Plan]) -> set[str]:
    """Keys whose value differs between the points, but for the seed and for `merge`: a method tells its own."""
    points = [read_overrides(plan.config.overrides) for plan in plans]
    keys = {key for point in points for key in point if not key.startswith("merge") and key != "seed"}
    return {key for key in keys if len({point.get(key) for point in points}) > 1}


def _result(found: _Found, swept: set[str]) -> SourceResult:
    plan, source = found.plan, found.sources[0]
    asked = [(each, task) for each in found.sources for task in each.tasks]
    others = [other_score(plan, each, task) for each, task in asked]
    common: dict[str, Any] = {
        "scores": {task.name: read_score(plan.score(each, task).path) for each, task in asked},
        "other_scores": {
            task.name: read_score(other.path) for (_, task), other in zip(asked, others, strict=True) if other
        },
        "predictions": {task.name: plan.predictions(each, task).path for each, task in asked},
        "address": ", ".join(each.address.short for each in found.sources),
        "seed": _seed_of(found),
    }
    point = _shared_point(found.plans, swept)
    if source.kind == "expert":  # one row: each expert on its own task
        return SourceResult("individual", "individual", "Individual", overrides=point, **common)
    method = source.method
    if method is None:
        return SourceResult(source.name, source.kind, source.title, overrides=point, **common)
    settings = settings_in_identity(method)
    return SourceResult(
        source=source.name,
        kind=source.kind,
        title=source.title,
        overrides={**point, **changed_settings(_configured(plan, source))},
        settings={key: value for key, value in settings.items() if key != "name"},
        paper=method.paper,
        method=method.name,
        variant=source.variant,
        choice=plan.choices[method.name] if source.variant else None,
        **common,
    )


def other_score(plan: Plan, source: Source, task: Task) -> Address | None:
    """The score under the other protocol, where it is there."""
    found = plan.other_score(source, task)
    return found if found is not None and found.is_complete() else None


def _seed_of(found: _Found) -> int | None:
    """The seed that the experts behind a result were trained with; None if it rests on no training here."""
    if found.sources[0].kind == "zero_shot" or not found.plan.config.trains:
        return None
    return found.plan.config.seed


def _shared_point(plans: Sequence[Plan], swept: set[str]) -> dict[str, str]:
    """The swept settings that have the same value in all these points."""
    points = [
        {key: value for key, value in read_overrides(plan.config.overrides).items() if key in swept} for plan in plans
    ]
    return {key: value for key, value in points[0].items() if all(point.get(key) == value for point in points)}


def _configured(plan: Plan, source: Source) -> Method | OutsideMethod:
    """The method as the user configured it: a chosen strength is no override."""
    return next(method for method in plan.config.methods if method.name == source.method.name)


def changed_settings(method: Method | OutsideMethod) -> Mapping[str, Any]:
    """What differs from the method's own file, flat: `{"prune.density": 0.3}`."""
    if method.name not in list_methods():
        return {}
    published = settings_in_identity(read_method(method.name))
    return dict(differences(settings_in_identity(method), published))


def _addresses(plan: Plan) -> Iterator[Address]:
    """Everything that a report rests on."""
    yield from (plan.corpus, plan.base)
    yield from (plan.data(task) for task in plan.config.tasks)
    yield from plan.experts.values()
    yield from plan.choosing_addresses()
    for source in plan.sources:
        yield source.address
        for task in source.tasks:
            yield plan.predictions(source, task)
            yield plan.score(source, task)
            other = other_score(plan, source, task)
            if other is not None:
                yield other


def tell_report(plans: Sequence[Plan], reports: Sequence[tuple[Path, str]], started: float) -> None:
    """After merge_eval and report: the main table and where to look."""
    for folder, table in reports:
        print(f"\n{table}\n\nreport: {shown(folder / 'report.md')} (and report.html)")
    print(f"took {_minutes(time.monotonic() - started)}; everything that exists: python scripts/runs.py")
