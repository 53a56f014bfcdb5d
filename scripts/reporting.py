"""From the scores on disk to a report: one a run folder, over all points of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.report import make_report, show_summary, write_files
from eval.results import Context, SourceResult
from robustmerge.method import Method, OutsideMethod
from robustmerge.method_files import list_methods, read_method
from robustmerge.records import read_score
from robustmerge.runs import Address, commit, settings_in_identity, write_atomically
from scripts.commands import command
from scripts.config import differences
from scripts.line import Line, Source

TITLES = {"zero_shot": "Zero-shot", "multi_task": "Multi-task"}
UNNAMED = ("paths.", "logger", "jobs", "report", "profile", "hydra.", "benchmark=", "model=")


def report(lines: Sequence[Line]) -> list[tuple[Path, str]]:
    """Write the report of every run folder; returns each one's folder and its main table as text."""
    roots = {line.root: [other for other in lines if other.root == line.root] for line in lines}
    return [_report_one(root, alike) for root, alike in roots.items()]


def _report_one(root: Path, lines: Sequence[Line]) -> tuple[Path, str]:
    folder = root / "reports" / name_of(lines)
    context = _context(folder.name, lines)
    made = make_report(collect(lines), context)
    folder.mkdir(parents=True, exist_ok=True)
    used = sorted({address.short for line in lines for address in _addresses(line)})
    write_atomically(folder / "addresses.json", json.dumps(used, indent=1) + "\n")
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
    words = sorted({word for line in lines for word in line.config.overrides if not word.startswith(UNNAMED)})
    name = re.sub(r"[^\w.=-]+", "_", "-".join(words)).strip("_")
    return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if len(name) > 80 else name or "main"


def _context(name: str, lines: Sequence[Line]) -> Context:
    config = lines[0].config
    seeds = {"benchmark": config.benchmark.seed, "bootstrap": config.bootstrap.seed}
    if config.model.base is not None:
        seeds["base"] = config.model.base.seed
    if config.experts is None and len({line.config.seed for line in lines}) == 1:
        seeds["experts"] = config.seed
    return Context(
        name=name,
        benchmark=config.benchmark.name,
        model=config.model.name,
        profile=config.profile,
        tasks=tuple({task.name: task for line in lines for task in line.config.tasks}.values()),
        questions={task.name: line.questions(task) for line in lines for task in line.config.tasks},
        seeds=seeds,
        command=command("merge_eval", lambda word: not word.startswith("jobs=")),
        bootstrap=config.bootstrap,
        **commit(),
    )


def collect(lines: Sequence[Line]) -> list[SourceResult]:
    """The scores of all sources, each address once, in the order of the points."""
    swept = _swept_keys(lines)
    found: dict[tuple[str, ...], SourceResult] = {}
    for line in lines:
        point = {key: value for key, value in _overrides(line).items() if key in swept}
        experts = [source for source in line.sources if source.kind == "expert"]
        if experts:
            found.setdefault(("individual", *_made_of(line, experts)), _individual(line, experts, point))
        for source in line.sources:
            if source.kind != "expert":
                found.setdefault((source.kind, *_made_of(line, [source])), _result(line, source, point))
    return list(found.values())


def _made_of(line: Line, sources: Sequence[Source]) -> list[str]:
    """What a row rests on: points that share all of it share the row."""
    return [line.score(source, task).fingerprint for source in sources for task in source.tasks]


def _overrides(line: Line) -> dict[str, str]:
    words = (word.lstrip("+") for word in line.config.overrides)
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def _swept_keys(lines: Sequence[Line]) -> set[str]:
    """Keys outside of `merge` whose value differs between the points; a method tells its own differences."""
    points = [_overrides(line) for line in lines]
    keys = {key for point in points for key in point if not key.startswith("merge")}
    return {key for key in keys if len({point.get(key) for point in points}) > 1}


def _individual(line: Line, experts: Sequence[Source], point: Mapping[str, str]) -> SourceResult:
    """One row: each expert on its own task."""
    own = {source.tasks[0].name: (source, source.tasks[0]) for source in experts}
    return SourceResult(
        source="individual",
        kind="individual",
        title="Individual",
        scores={name: read_score(line.score(*pair).path) for name, pair in own.items()},
        predictions={name: line.predictions(*pair).path for name, pair in own.items()},
        address=", ".join(source.address.short for source in experts),
        overrides=dict(point),
    )


def _result(line: Line, source: Source, point: Mapping[str, str]) -> SourceResult:
    method = source.method
    title = TITLES.get(source.kind) or (getattr(method, "title", "") or source.name.partition("/")[2] or source.name)
    settings = settings_in_identity(method) if method is not None else {}
    return SourceResult(
        source=source.name,
        kind=source.kind,
        title=title,
        scores={task.name: read_score(line.score(source, task).path) for task in source.tasks},
        predictions={task.name: line.predictions(source, task).path for task in source.tasks},
        address=source.address.short,
        overrides={**point, **(changed_settings(method) if method is not None else {})},
        settings={key: value for key, value in settings.items() if key != "name"},
        paper=getattr(method, "paper", ""),
    )


def changed_settings(method: Method | OutsideMethod) -> dict[str, Any]:
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
    for source in line.sources:
        yield source.address
        for task in source.tasks:
            yield line.predictions(source, task)
            yield line.score(source, task)
