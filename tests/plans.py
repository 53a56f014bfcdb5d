"""Real plans whose results are written by hand, in place of those that models would get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.plan import Evaluation, Plan
from pipeline.program import compose
from pipeline.sweep import make_plans
from robustmerge.stage.address import Address
from robustmerge.stage.records import Score, write_score
from tests.report_cases import make_score


def make_point(runs: Path, *words: str, program: str = "merge_eval") -> dict:
    """A composed point of a sweep under `runs`, as an entry point gets it."""
    return {**compose(program, [f"paths.runs={runs}", *words]), "overrides": list(words)}


def make_plan(runs: Path, *words: str) -> Plan:
    (plan,) = make_plans([make_point(runs, *words)])
    return plan


def finish(address: Address) -> None:
    """Write the manifest of a result."""
    address.path.parent.mkdir(parents=True, exist_ok=True)
    address.manifest.parent.mkdir(parents=True, exist_ok=True)
    address.manifest.write_text(json.dumps({"identity": address.identity, "record": {}}))


def finish_score(evaluation: Evaluation, score: Score) -> None:
    """Write the score of an evaluation."""
    finish(evaluation.score)
    write_score(evaluation.score.path, score)


def finish_scores(plan: Plan, source: str, right: Mapping[str, int]) -> None:
    """Write the test scores of a source: so many right answers of each task."""
    for one in plan.list_evaluations(plan.find_source(source)):
        if one.task.name in right:
            finish_score(one, make_score(one.task.name, right[one.task.name]))
