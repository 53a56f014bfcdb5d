"""The score stage: predictions against the references of their question file, the value of every question kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.metrics.answers import ANSWER_METRICS, mean_iou
from eval.metrics.official import OFFICIAL_METRICS
from eval.parse import PARSERS, Answer
from eval.questions import read_questions
from eval.settings import CAPTION_NAMES, OFFICIAL_NAMES, Scoring
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.records import Example, Prediction, Score, read_examples, read_predictions, write_score
from robustmerge.stage.settings import UserError

SHOWN = 5
Judged = tuple[list[str], dict[str, Any]]  # of every question failed, empty, unparsed or scored; fields of the Score


def score(
    address: Address,
    settings: Scoring,
    questions: Path,
    predictions: Path,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the Score of one prediction file to `address`.

    Raises UserError if an id is missing, doubled or unknown, or a reference cannot be read, before it scores.
    """

    def work(path: Path) -> dict:
        if not Path(predictions).exists():
            raise UserError(f"predictions {predictions} do not exist; run predict first")
        examples = read_questions(questions, settings.only)
        try:
            found = score_predictions(settings, examples, read_predictions(predictions))
        except UserError as error:
            raise UserError(f"{predictions} against {questions}: {error}") from error
        if not settings.only.is_all and (whole := len(read_examples(questions))) > len(examples):
            found = replace(found, n_asked=whole)
        write_score(path, found)
        return {"value": found.value, "questions": found.n_expected}

    return run_stage(address, work, say)


def score_partial(settings: Scoring, questions: Path, answered: Mapping[str, Prediction]) -> Score | None:
    """The score over those questions that have an answer so far, for a look; None if none has.

    It says how many there are of how many, and is never written where a score is expected.
    """
    examples = read_questions(questions, settings.only)
    there = [example for example in examples if example.question_id in answered]
    if not there:
        return None
    found = score_predictions(settings, there, [answered[example.question_id] for example in there])
    return replace(found, n_asked=0 if len(there) == len(examples) else len(examples))


def score_predictions(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    """Score the predictions of one task.

    A question counts as failed (no answer could be generated), empty or unparsed at most once; n_scored counts the
    rest. Each of those is worth 0, but what a published scorer makes of an empty answer is its own affair.
    """
    aligned = align(examples, predictions)
    if settings.metric in CAPTION_NAMES:
        states, judged = _judge_captions(settings, examples, aligned)
    elif settings.metric in OFFICIAL_NAMES:
        states, judged = _judge_officially(settings, examples, aligned)
    else:
        states, judged = _judge(settings, examples, aligned)
    counts = Counter(states)
    return Score(
        task=settings.task,
        n_expected=len(examples),
        n_scored=counts["scored"],
        n_empty=counts["empty"],
        n_unparsed=counts["unparsed"],
        n_failed=counts["failed"],
        clusters=_shared_pictures(examples),
        **{"metric": settings.metric, **judged},
    )


def _judge(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judged:
    """By the task's parser and metric: the value of a question is 0 where there is no answer to compare."""
    references = _read_references(settings, examples)
    parse, metric = PARSERS[settings.parse], ANSWER_METRICS[settings.metric]
    answers = [parse(one.text, example.choices) for example, one in zip(examples, predictions, strict=True)]
    states = [_state_of(one, answer) for one, answer in zip(predictions, answers, strict=True)]
    values = [
        metric(answer, accepted) if state == "scored" else 0.0
        for answer, accepted, state in zip(answers, references, states, strict=True)
    ]
    parts = {}
    if settings.metric == "iou_at_half":
        pairs = [(a if state == "scored" else None, r) for a, r, state in zip(answers, references, states, strict=True)]
        parts["mean_iou"] = 100 * mean_iou(pairs)
    return states, _by_question(examples, values, parts)


def _judge_officially(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judged:
    """By the rule of the published script, its faults included. It knows no failed answer, which stays worth 0."""
    rule = OFFICIAL_METRICS[settings.metric]
    states = [_state_of(one, one.text) for one in predictions]
    values = [
        rule(one.text, example) if state != "failed" else 0.0
        for example, one, state in zip(examples, predictions, states, strict=True)
    ]
    return states, _by_question(examples, values, {})


def _by_question(
    examples: Sequence[Example], values: Sequence[float], parts: dict[str, float | None]
) -> dict[str, Any]:
    """The mean over questions. Where only some have a picture, that over these is a part of it."""
    seen = [value for example, value in zip(examples, values, strict=True) if example.image is not None]
    if 0 < len(seen) < len(values):
        parts["with_picture"] = 100 * sum(seen) / len(seen)
    by_id = dict(zip((example.question_id for example in examples), values, strict=True))
    return {"value": 100 * sum(values) / len(values), "values": by_id, "parts": parts}


def _judge_captions(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judged:
    from eval.metrics.captions import CAPTION_METRICS  # loads the caption scorers, which no other task needs

    texts = [prediction.text for prediction in predictions]
    found = CAPTION_METRICS[settings.metric](texts, [example.accepted for example in examples], settings.tokenizer)
    ids = [example.question_id for example in examples]
    states = [_state_of(prediction, prediction.text) for prediction in predictions]
    return states, {
        "metric": found.metric,
        "value": found.value,
        "values": dict(zip(ids, found.values, strict=True)),
        "reason": found.reason,
        "parts": found.parts,
        "aggregate": found.aggregate,
        "statistics": dict(zip(ids, found.statistics, strict=True)),
    }


def _state_of(prediction: Prediction, answer: Answer | None) -> str:
    if prediction.error is not None:
        return "failed"
    if not prediction.text.strip():
        return "empty"
    return "unparsed" if answer is None else "scored"


def _shared_pictures(examples: Sequence[Example]) -> dict[str, str]:
    """The picture of each question where some picture has several; a question without one stands for itself."""
    pictures = {example.question_id: example.image or f"question {example.question_id}" for example in examples}
    return pictures if len(set(pictures.values())) < len(pictures) else {}


def align(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions in the order of the questions. Raises UserError unless each question has exactly one."""
    if not examples:
        raise UserError("the question file holds no question")
    asked = [example.question_id for example in examples]
    counts = Counter(prediction.question_id for prediction in predictions)
    known = set(asked)
    wrong = {
        "missing": [name for name in asked if name not in counts],
        "doubled": [name for name, count in counts.items() if count > 1],
        "unknown": [name for name in counts if name not in known],
    }
    problems = [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in wrong.items() if names]
    if problems:
        raise UserError(f"question ids do not match {len(asked)} questions: {'; '.join(problems)}")
    by_id = {prediction.question_id: prediction for prediction in predictions}
    return [by_id[name] for name in asked]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _read_references(settings: Scoring, examples: Sequence[Example]) -> list[list[Answer]]:
    """The references of every question, read by the task's parser."""
    parse, unread, found = PARSERS[settings.parse], [], []
    for example in examples:
        read = [parse(reference, example.choices) for reference in example.accepted]
        if None in read:
            unread.append(f"{example.question_id}: {example.accepted[read.index(None)]!r}")
        found.append(read)
    if unread:
        count = len(unread)
        raise UserError(f"{count} references cannot be read with parse={settings.parse} ({_shorten(unread)})")
    return found
