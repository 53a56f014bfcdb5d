"""The score stage: scores the answers of a source, under either protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval.predict import list_shards, read_shards
from eval.score import score as score_answers
from eval.score import score_partial
from eval.settings import BUILTIN_SUFFIX, CAPTION_NAMES, METRIC_NAMES, PROTOCOLS
from pipeline.events import say
from pipeline.plan import Evaluation
from pipeline.work_items import describe_item, drop_finished, run_side_by_side
from robustmerge.stage.address import Address
from robustmerge.stage.records import Score, read_score
from robustmerge.stage.settings import UserError, build

CAPTION_COST = 100.0  # of scoring a caption, beside a short answer


def find_unscored(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that have no score yet; one with a score, made here or elsewhere, needs no answers."""
    return [one for _, one in drop_finished((one.score, one) for one in evaluations)]


def score(evaluations: Sequence[Evaluation]) -> None:
    """Score the answers of every evaluation; needs no model. Raises UserError where answers are missing."""
    unfinished = drop_finished((one.score, one) for one in evaluations)
    for address, one in tqdm(unfinished, desc="score", leave=False, disable=None):
        if not one.predictions.is_complete():
            raise UserError(_explain_missing(one))
        score_answers(address, one.plan.scoring(one.eval_set), one.questions, one.predictions.path)


def _explain_missing(one: Evaluation) -> str:
    protocol = one.plan.config.protocol
    words = f" with protocol={protocol}" if protocol != PROTOCOLS[0] else ""
    begun = "; what is there so far can be looked at with score.py partial=true"
    return (
        f"{one.source.label} has no predictions for {one.task.name}; run scripts/predict.py first{words}"
        f"{begun if list_shards(one.predictions.path) else ''}"
    )


def score_with_other_protocol(evaluations: Sequence[Evaluation]) -> None:
    """Score evaluations by the other protocol too, side by side, wherever the answers that it needs exist."""
    others = [other for one in evaluations if (other := one.with_other_protocol()) is not None]
    items, costs = [], []
    for address, one in drop_finished((one.score, one) for one in others):
        settings = one.plan.scoring(one.eval_set)
        files = {"questions": str(one.questions), "predictions": str(one.predictions.path)}
        items.append(describe_item("score", address, settings, **files))
        costs.append(one.expected_count * (CAPTION_COST if settings.metric in CAPTION_NAMES else 1.0))
    if items:
        run_side_by_side(others[0].plan, f"score, {others[0].eval_set.protocol}", items, costs)


def work_score(item: dict) -> None:
    from eval.score import score
    from eval.settings import Scoring

    settings = build(Scoring, item["settings"], "scoring")
    score(Address.from_json(item["address"]), settings, Path(item["questions"]), Path(item["predictions"]), say)


def print_scores(evaluations: Sequence[Evaluation]) -> None:
    """Print the score of every evaluation and the number of answers behind it."""
    for one in evaluations:
        print(format_score(one.source.label, one.task.name, read_score(one.score.path)))


def print_partial_scores(evaluations: Sequence[Evaluation]) -> None:
    """Print the scores over the questions answered so far; nothing is written."""
    for one in evaluations:
        answered = read_shards(one.predictions.path)
        partial = score_partial(one.plan.scoring(one.eval_set), one.questions, answered)
        print(format_score(one.source.label, one.task.name, partial))


def format_score(source: str, task: str, score: Score | None) -> str:
    """Format a score in one line with the number of answers behind it. None: nothing is answered."""
    if score is None:
        return f"{source:<24} {task:<16}   none  (nothing is answered yet)"
    value = "  none" if score.value is None else f"{score.value:6.2f}"
    missed = {"empty": score.n_empty, "unparsed": score.n_unparsed, "failed": score.n_failed}
    counts = [f"{score.n_scored} of {score.n_expected} scored"]
    worth = ", worth 0" if score.metric in METRIC_NAMES else ""
    counts += [f"{count} {kind}{worth}" for kind, count in missed.items() if count]
    counts += [f"{score.metric}: without Java"] if score.metric.endswith(BUILTIN_SUFFIX) else []
    counts += [f"a partial evaluation: {score.n_expected} of {score.n_asked} questions"] if score.n_asked else []
    counts += [f"{score.coverage:.1%} of the dataset's questions"] if score.n_left_out else []
    counts += [f"{name} {part:.2f}" for name, part in score.parts.items() if part is not None]
    return f"{source:<24} {task:<16} {value}  ({', '.join(counts)}{'; ' if score.reason else ''}{score.reason})"
