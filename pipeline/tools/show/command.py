"""Show what every source of the table answered: one page beside the report, opened where there is a desktop."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eval.report.results import CHOSEN, SEARCHED
from pipeline.plan import Evaluation, Plan
from pipeline.program import command, parse_overrides
from pipeline.stages.report import name_report
from pipeline.sweep import describe_point, find_swept_keys, make_plans
from pipeline.terminal import format_path
from pipeline.tools.show.gallery import collect_gallery, make_page
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import ConfigError, Problem, UserError, build

PAGE = "gallery.html"


@dataclass(frozen=True)
class ShowRequest:
    """The keys of show.py. count: questions a task; None: all. open: whether the page is opened."""

    count: int | None = 100
    open: bool = True

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(
                Problem(f"count must be at least 1, or null for all questions, got {self.count}", "count")
            )


def show(points: Sequence[Mapping[str, Any]]) -> None:
    """Write a page for every run folder. Raises UserError where nothing has answers and scores."""
    plans, request = read_request(points)
    for root in dict.fromkeys(plan.root for plan in plans):
        path = _write_page([plan for plan in plans if plan.root == root], request)
        print(f"gallery: {format_path(path)}")
        if request.open and has_desktop():
            webbrowser.open(path.as_uri())


def read_request(points: Sequence[Mapping[str, Any]]) -> tuple[list[Plan], ShowRequest]:
    """The plans, as those of the report, and what is shown. Raises ConfigError for what is wrong."""
    keys = [field.name for field in fields(ShowRequest)]
    values = [{key: point[key] for key in keys} for point in points]
    if any(one != values[0] for one in values):
        raise UserError("a sweep cannot run over count or open: all its points are on one page")
    request = build(ShowRequest, values[0], "")
    return make_plans([_leave_out(keys, point) for point in points]), request


def _leave_out(keys: Sequence[str], point: Mapping[str, Any]) -> dict[str, Any]:
    words = [word for word in point["overrides"] if not set(keys) & set(parse_overrides([word]))]
    return {**{key: value for key, value in point.items() if key not in keys}, "overrides": words}


def _write_page(plans: Sequence[Plan], request: ShowRequest) -> Path:
    seed = min(plan.config.seed for plan in plans)
    shown = [plan for plan in plans if plan.config.seed == seed]
    evaluations = {plan: _list_evaluations(plan) for plan in shown}
    finished = {plan: [one for one in ones if _is_finished(one)] for plan, ones in evaluations.items()}
    make = command("merge_eval", lambda word: not word.startswith(("count=", "open=")))
    if not any(finished.values()):
        raise UserError(f"no source of this configuration has answers and scores in {plans[0].root}\nMake them: {make}")
    if missing := list(_name_missing(evaluations)):
        print(f"missing: {'; '.join(missing)}. Make them: {make}")
    gallery = collect_gallery(finished, request.count, sorted({plan.config.seed for plan in plans}))
    path = plans[0].root / "reports" / name_report(plans) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, make_page(gallery))
    return path


def _list_evaluations(plan: Plan) -> list[Evaluation]:
    """The evaluations of the table; while strengths cannot be chosen yet, of the sources as they are configured."""
    try:
        return plan.evaluations
    except UserError:
        return [one for source in plan.configured for one in plan.list_evaluations(source)]


def _is_finished(one: Evaluation) -> bool:
    return one.score.is_complete() and one.predictions.is_complete()


def _name_missing(evaluations: Mapping[Plan, Sequence[Evaluation]]) -> Iterator[str]:
    """Name every source that lacks answers or scores, with its tasks if it has some, and its point of a sweep."""
    keys = find_swept_keys(list(evaluations), ignored=("seed",))
    for plan, ones in evaluations.items():
        undecided = [f"merged/{name}@{CHOSEN}" for name in plan.candidates]
        undecided += [f"merged/{name}@{SEARCHED}" for name in plan.searched_methods]
        for label in dict.fromkeys([*(one.source.label for one in ones), *undecided]):
            of_source = [one for one in ones if one.source.label == label]
            lacking = [one.task.name for one in of_source if not _is_finished(one)]
            if of_source and not lacking:
                continue
            words = [f"on {', '.join(lacking)}"] if len(lacking) < len(of_source) else []
            words += [describe_point(plan, keys)] if keys else []
            yield f"{label} ({'; '.join(words)})" if words else label


def has_desktop() -> bool:
    """Whether there is a desktop that a browser can open a window on."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY"))
