"""From the scores on disk to a report: one a run folder, over all points of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.report import make_report, show_summary, write_files
from eval.results import Context, SourceResult
from eval.settings import Task
from robustmerge.method import Method, OutsideMethod
from robustmerge.method_files import list_methods, read_method
from robustmerge.records import read_score
from robustmerge.runs import Address, settings_in_identity, write_atomically
from scripts.commands import read_overrides
from scripts.general_results import general_addresses
from scripts.line import Line
from scripts.read_config import differences
from scripts.report_context import make_context, read_general
from scripts.sources import Source

UNNAMED = ("paths.", "logger", "jobs", "report", "profile", "hydra.", "benchmark=", "model=")


@dataclass
class _Found:
    """A result before it has a label. sources: one, or every expert; lines: the points that share it."""

    line: Line
    sources: list[Source]
    lines: list[Line] = field(default_factory=list)


def report(lines: Sequence[Line]) -> list[tuple[Path, str]]:
    """Write the report of every run folder; returns each one's folder and its main table as text."""
    roots = {line.root: [other for other in lines if other.root == line.root] for line in lines}
    return [_report_one(root, alike) for root, alike in roots.items()]


def _report_one(root: Path, lines: Sequence[Line]) -> tuple[Path, str]:
    folder = root / "reports" / name_of(lines)
    context = replace(make_context(folder.name, lines), general=read_general(lines))
    made = make_report(collect(lines), context)
    folder.mkdir(parents=True, exist_ok=True)
    used = {address.short for line in lines for address in _addresses(line)}
    used |= {address for line in lines for address in general_addresses(line)}
    write_atomically(folder / "addresses.json", json.dumps(sorted(used), indent=1) + "\n")
    write_files(folder, made)
    _log(lines[0], folder, made.tables, context)
    return folder, show_summary(made)


def _log(line: Line, folder: Path, tables: Mapping[str, Any], context: Context) -> None:
    """To W&B, once for the same tables."""
    if line.config.logger.name == "none":
        return
    logged = folder / "wandb" / "logged"
    digest = hashlib.sha256(repr((tables, line.config.logger)).encode()).hexdigest()
    if logged.exists() and logged.read_text() == digest:
        return
    from eval.wandb_log import log_report

    if log_report(line.config.logger, folder, tables, context):
        write_atomically(logged, digest)


def name_of(lines: Sequence[Line]) -> str:
    """`report=`; otherwise `main` for the table as configured, and what was overridden for any other."""
    config = lines[0].config
    if config.report:
        return config.report
    values: dict[str, list[str]] = {}
    for key, value in (pair for line in lines for pair in read_overrides(line.config.overrides).items()):
        if not f"{key}=".startswith(UNNAMED) and value not in values.setdefault(key, []):
            values[key].append(value)
    words = [f"{key}={'_'.join(values[key])}" for key in sorted(values)]
    name = re.sub(r"[^\w.=-]+", "_", "-".join(words)).strip("_")
    return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if len(name) > 80 else name or "main"


def collect(lines: Sequence[Line]) -> list[SourceResult]:
    """The scores of all sources, each once, in the order of the points.

    What several points share is labelled only by what is the same in all of them.
    """
    found: dict[tuple[str, ...], _Found] = {}
    for line in lines:
        experts = [source for source in line.sources if source.kind == "expert"]
        others = [[source] for source in line.sources if source.kind != "expert"]
        for sources in [experts, *others] if experts else others:
            rests_on = [line.score(source, task).fingerprint for source in sources for task in source.tasks]
            key = (sources[0].kind, sources[0].variant, *rests_on)
            found.setdefault(key, _Found(line, sources)).lines.append(line)
    swept = _swept_keys(lines)
    return [_result(one, swept) for one in found.values()]


def _swept_keys(lines: Sequence[Line]) -> set[str]:
    """Keys whose value differs between the points, but for the seed and for `merge`: a method tells its own."""
    points = [read_overrides(line.config.overrides) for line in lines]
    keys = {key for point in points for key in point if not key.startswith("merge") and key != "seed"}
    return {key for key in keys if len({point.get(key) for point in points}) > 1}


def _result(found: _Found, swept: set[str]) -> SourceResult:
    line, source = found.line, found.sources[0]
    asked = [(each, task) for each in found.sources for task in each.tasks]
    others = [other_score(line, each, task) for each, task in asked]
    common: dict[str, Any] = {
        "scores": {task.name: read_score(line.score(each, task).path) for each, task in asked},
        "also": {task.name: read_score(other.path) for (_, task), other in zip(asked, others, strict=True) if other},
        "predictions": {task.name: line.predictions(each, task).path for each, task in asked},
        "address": ", ".join(each.address.short for each in found.sources),
        "seed": _seed_of(found),
    }
    point = _shared_point(found.lines, swept)
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
        overrides={**point, **changed_settings(_configured(line, source))},
        settings={key: value for key, value in settings.items() if key != "name"},
        paper=method.paper,
        variant=source.variant,
        choice=line.choices[method.name] if source.variant else None,
        **common,
    )


def other_score(line: Line, source: Source, task: Task) -> Address | None:
    """The score under the other protocol, where it is there."""
    found = line.other_score(source, task)
    return found if found is not None and found.is_complete() else None


def _seed_of(found: _Found) -> int | None:
    """The seed that the experts behind a result were trained with; None if it rests on no training here."""
    if found.sources[0].kind == "zero_shot" or not found.line.config.trains:
        return None
    return found.line.config.seed


def _shared_point(lines: Sequence[Line], swept: set[str]) -> dict[str, str]:
    """The swept settings that have the same value in all these points."""
    points = [
        {key: value for key, value in read_overrides(line.config.overrides).items() if key in swept} for line in lines
    ]
    return {key: value for key, value in points[0].items() if all(point.get(key) == value for point in points)}


def _configured(line: Line, source: Source) -> Method | OutsideMethod:
    """The method as the user configured it: a chosen strength is no override."""
    return next(method for method in line.config.methods if method.name == source.method.name)


def changed_settings(method: Method | OutsideMethod) -> Mapping[str, Any]:
    """What differs from the method's own file, flat: `{"prune.density": 0.3}`."""
    if method.name not in list_methods():
        return {}
    published = settings_in_identity(read_method(method.name))
    return dict(differences(settings_in_identity(method), published))


def _addresses(line: Line) -> Iterator[Address]:
    """Everything that a report rests on."""
    yield from (line.corpus, line.base)
    yield from (line.data(task) for task in line.config.tasks)
    yield from line.experts.values()
    yield from line.choosing_addresses()
    for source in line.sources:
        yield source.address
        for task in source.tasks:
            yield line.predictions(source, task)
            yield line.score(source, task)
            other = other_score(line, source, task)
            if other is not None:
                yield other
