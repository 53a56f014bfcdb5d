"""Score: from the answers of a source to its scores, under either protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.predict import list_shards, read_shards
from eval.score import score as score_answers
from eval.score import score_partial
from eval.settings import BUILTIN_SUFFIX, CAPTION_NAMES, METRIC_NAMES, PROTOCOLS, other_protocol
from pipeline.jobs import say
from pipeline.plan import Plan
from pipeline.stages.predict import Sources, _count, _pairs, chosen_source
from pipeline.todo import item_of, once, share_out
from robustmerge.stage.address import Address
from robustmerge.stage.records import Score, read_score
from robustmerge.stage.settings import UserError, build

CAPTION_COST = 100.0  # of scoring a caption, beside a short answer


def score(plans: Sequence[Plan], sources: Sources, split: str = "test") -> None:
    """Score the answers to the questions of a split; needs no model."""

    def list_one(plan: Plan) -> list[tuple[Address, Any]]:
        return [(plan.score(source, task, split), (plan, source, task)) for source, task in _pairs(plan, sources)]

    for address, (plan, source, task) in tqdm(once(plans, list_one), desc="score", leave=False, disable=None):
        predictions = plan.predictions(source, task, split)
        if not predictions.is_complete():
            left = list_shards(predictions.path)
            begun = "; what is there so far can be looked at with score.py partial=true" if left else ""
            asked = f" with protocol={plan.config.protocol}" if plan.config.protocol != PROTOCOLS[0] else ""
            raise UserError(
                f"{source.label} has no predictions for {task.name}; run scripts/predict.py first{asked}{begun}"
            )
        score_answers(address, plan.scoring(task, split), plan.questions(task, split), predictions.path)


def score_otherwise(plans: Sequence[Plan], sources: Sources) -> None:
    """Score the same sources by the other protocol, wherever the answers that it needs exist: side by side."""
    if not plans[0].config.other_protocol:
        return

    def list_one(plan: Plan) -> list[tuple[Address, Any]]:
        found = [(plan.other_score(source, task), (plan, source, task)) for source, task in _pairs(plan, sources)]
        return [(address, value) for address, value in found if address is not None]

    other, items, costs = other_protocol(plans[0].config.protocol), [], []
    for address, (plan, source, task) in once(plans, list_one):
        settings = plan.scoring(task, "test", other)
        predictions = plan.predictions(source, task, "test", other)
        files = {"questions": str(plan.questions(task)), "predictions": str(predictions.path)}
        items.append(item_of("score", address, settings, **files))
        costs.append(_count(plan, task, "test") * (CAPTION_COST if settings.metric in CAPTION_NAMES else 1.0))
    share_out(plans, f"score, {other}", items, costs)


def score_partly(plans: Sequence[Plan]) -> list[tuple[str, str, Score | None]]:
    """Of the chosen sources, by source and task: the score over the questions that have an answer so far."""
    found = []
    for plan in plans:
        for source, task in _pairs(plan, chosen_source):
            answered = read_shards(plan.predictions(source, task).path)
            score_so_far = score_partial(plan.scoring(task), plan.questions(task), answered)
            found.append((source.label, task.name, score_so_far))
    return found


def tell_scores(plans: Sequence[Plan]) -> None:
    """After score: the value of every task, and how many answers stand behind it."""
    for plan in plans:
        source = plan.find_source(plan.config.source)
        for task in source.tasks:
            print(_told(source.label, task.name, read_score(plan.score(source, task).path)))


def tell_partial(found: Sequence[tuple[str, str, Score | None]]) -> None:
    """After score with `partial=true`: what is known so far."""
    for source, task, score in found:
        print(_told(source, task, score) if score else f"{source:<24} {task:<16}   none  (nothing is answered yet)")


def _told(source: str, task: str, score: Score) -> str:
    value = "  none" if score.value is None else f"{score.value:6.2f}"
    missed = {"empty": score.n_empty, "unparsed": score.n_unparsed, "failed": score.n_failed}
    counts = [f"{score.n_scored} of {score.n_expected} scored"]
    worth = ", worth 0" if score.metric in METRIC_NAMES else ""
    counts += [f"{count} {kind}{worth}" for kind, count in missed.items() if count]
    counts += [f"{score.metric}: without Java"] if score.metric.endswith(BUILTIN_SUFFIX) else []
    counts += [f"a look at {score.n_expected} of {score.n_asked} questions"] if score.n_asked else []
    counts += [f"{name} {part:.2f}" for name, part in score.parts.items() if part is not None]
    return f"{source:<24} {task:<16} {value}  ({', '.join(counts)}{'; ' if score.reason else ''}{score.reason})"


def work_score(item: dict) -> None:
    from eval.score import score
    from eval.settings import Scoring

    settings = build(Scoring, item["settings"], "scoring")
    score(Address.from_json(item["address"]), settings, Path(item["questions"]), Path(item["predictions"]), say)
