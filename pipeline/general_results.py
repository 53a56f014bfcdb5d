"""Finished results of general benchmarks, found on disk for a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eval.general.lmms_results import GeneralResult, GeneralRun, describe_changes
from pipeline.plan import Plan
from pipeline.sources import Source
from robustmerge.stage.address import Address, read_manifest
from robustmerge.stage.records import Score, read_score
from robustmerge.stage.settings import build

KIND = "general"


def find_scores(root: Path, source: Source, base: Address, usual: GeneralRun) -> dict[str, Score]:
    """Find a source's finished general scores over all questions, by title: the task, and how its run differs.

    The newest of several with one title, as after a change of the task's own files.
    base: that it belongs to; an adapter folder fits several. usual: how tasks are asked by this configuration.
    """
    scores = {}
    files = sorted((root / KIND / source.folder).glob("*/manifest.json"))
    found = [(read_manifest(file), file) for file in files]
    for contents, manifest in sorted(found, key=lambda pair: pair[0]["record"].get("time", "")):
        identity = contents["identity"]
        inputs, settings = (identity.get(key) or {} for key in ("inputs", "settings"))
        is_of_base = isinstance(inputs, dict) and inputs.get("base") == base.fingerprint
        if identity.get("stage") == KIND and is_of_base:
            run = build(GeneralRun, settings, str(manifest))
            score = read_score(manifest.parent / "score.json")
            if not score.n_asked:
                scores[run.task + describe_changes(run, usual)] = score
    return scores


def general_rows(plan: Plan, titles: Mapping[str, Source]) -> list[GeneralResult]:
    """The general results of those of the sources that have any; titles: title -> source."""
    usual = usual_run(plan)
    results = [
        GeneralResult(title, source.kind, find_scores(plan.root, source, plan.base, usual), paper_name(source))
        for title, source in titles.items()
    ]
    return [result for result in results if result.scores]


def usual_run(plan: Plan) -> GeneralRun:
    """The usual settings by which this configuration evaluates a general task."""
    return GeneralRun("any", plan.config.model.template, precision=plan.precision)


def general_addresses(plan: Plan) -> list[str]:
    """The finished general results of this plan's sources, by their short addresses."""
    places = [plan.root / KIND / source.folder for source in plan.sources]
    return [m.parent.relative_to(plan.root).as_posix() for place in places for m in place.glob("*/manifest.json")]


def paper_name(source: Source) -> str:
    """The key of a source in the paper's table 3; "" if it cannot be there."""
    has_one = source.kind in ("zero_shot", "multi_task", "merged") and not source.variant
    return source.name.removeprefix("merged/") if has_one else ""
