"""The score stage: compares predictions with the references of their questions; keeps the value of every question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.metrics.answers import ANSWER_METRICS, best_iou, exact_match
from eval.metrics.grouped import GROUP_METRICS
from eval.metrics.official import OFFICIAL_METRICS
from eval.parse import PARSERS, Answer
from eval.questions import count_left_out, explain_unreadable, read_questions
from eval.settings import CAPTION_NAMES, OFFICIAL_NAMES, Scoring
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.records import Example, Prediction, Score, read_examples, read_predictions, write_score
from robustmerge.stage.settings import UserError, first_few

NAMED = 5  # question ids in a message
# The state of every question (failed, empty, unparsed or scored), and fields of the Score.
Judgement = tuple[list[str], dict[str, Any]]


def score(
    address: Address,
    settings: Scoring,
    questions: Path,
    predictions: Path,
    say: Callable[[str], None] = print,
) -> Path:
    """Score one prediction file and write the result to `address`.

    Raises UserError, before it scores, if an id is missing, doubled or unknown, or a reference cannot be read.
    """

    def work(path: Path) -> dict:
        if not Path(predictions).exists():
            raise UserError(f"predictions {predictions} do not exist; run predict first")
        examples = read_questions(questions, settings.only)
        try:
            scored = score_predictions(settings, examples, read_predictions(predictions))
        except UserError as error:
            raise UserError(f"{predictions} against {questions}: {error}") from error
        if not settings.only.is_all and (total := len(read_examples(questions))) > len(examples):
            scored = replace(scored, n_asked=total)
        if left_out := count_left_out(questions):
            scored = replace(scored, n_left_out=left_out)
        write_score(path, scored)
        return {"value": scored.value, "questions": scored.n_expected}

    return run_stage(address, work, say)


def score_partial(settings: Scoring, questions: Path, answers: Mapping[str, Prediction]) -> Score | None:
    """Score the questions answered so far; None if there are none. Such a score is never written to a file.

    answers: by question. n_asked of the score is the number of all questions, unless all are answered.
    """
    examples = read_questions(questions, settings.only)
    answered = [example for example in examples if example.question_id in answers]
    if not answered:
        return None
    partial = score_predictions(settings, answered, [answers[example.question_id] for example in answered])
    return replace(partial, n_asked=0 if len(answered) == len(examples) else len(examples))


def score_predictions(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    """Score the predictions of one task.

    A question counts as failed (no answer could be generated), empty or unparsed at most once; n_scored counts the
    rest. Each of those is worth 0, except that the published scorers give an empty answer what they give it.
    """
    answers = align(examples, predictions)
    if settings.metric in CAPTION_NAMES:
        states, fields = _judge_captions(settings, examples, answers)
    elif settings.metric in OFFICIAL_NAMES:
        states, fields = _judge_officially(settings, examples, answers)
    else:
        states, fields = _judge_answers(settings, examples, answers)
    counts = Counter(states)
    return Score(
        task=settings.task,
        n_expected=len(examples),
        n_scored=counts["scored"],
        n_empty=counts["empty"],
        n_unparsed=counts["unparsed"],
        n_failed=counts["failed"],
        clusters=_cluster_by_picture(examples),
        **{"metric": settings.metric, **fields},
    )


def _judge_answers(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judgement:
    """Judge by the task's parser and metric; a question without an answer to compare has the value 0."""
    references = _read_references(settings, examples)
    parse, metric = PARSERS[settings.parse], ANSWER_METRICS.get(settings.metric, exact_match)
    parsed = [parse(one.text, example.choices) for example, one in zip(examples, predictions, strict=True)]
    states = [_find_state(one, answer) for one, answer in zip(predictions, parsed, strict=True)]
    answers = [answer if state == "scored" else None for answer, state in zip(parsed, states, strict=True)]
    pairs = list(zip(answers, references, strict=True))
    values = [0.0 if answer is None else metric(answer, accepted) for answer, accepted in pairs]
    if settings.metric in GROUP_METRICS:
        return states, _judge_groups(settings, examples, answers, values)
    parts: dict[str, float | None] = {}
    if settings.metric == "iou_at_half":
        parts["mean_iou"] = 100 * sum(best_iou(answer, accepted) for answer, accepted in pairs) / len(pairs)
    if settings.metric == "top_1":
        parts |= {f"top_{count}": _share_within(predictions, references, count) for count in (3, 5)}
    return states, _average(examples, values, parts)


def _share_within(predictions: Sequence[Prediction], references: Sequence[Sequence[Answer]], count: int) -> float:
    """How often, in per cent, the right class is among the first `count` that a classifier named."""
    named = [{line.strip() for line in one.text.splitlines()[:count]} for one in predictions]
    right = [not lines.isdisjoint(accepted) for lines, accepted in zip(named, references, strict=True)]
    return 100 * sum(right) / len(right)


def _judge_groups(
    settings: Scoring, examples: Sequence[Example], answers: Sequence[Answer | None], right: Sequence[float]
) -> dict[str, Any]:
    """Judge by a metric of questions that belong together; the value of a question is whether it is right."""
    grouped = GROUP_METRICS[settings.metric](examples, answers, right)
    ids = [example.question_id for example in examples]
    return {
        "value": grouped.value,
        "values": dict(zip(ids, right, strict=True)),
        "parts": grouped.parts,
        "aggregate": grouped.aggregate,
        "statistics": dict(zip(ids, grouped.statistics, strict=True)),
    }


def _judge_officially(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judgement:
    """Judge by the rule of the published script, faults included. A failed answer, unknown to it, is worth 0."""
    rule = OFFICIAL_METRICS[settings.metric]
    states = [_find_state(one, one.text) for one in predictions]
    values = [
        rule(one.text, example) if state != "failed" else 0.0
        for example, one, state in zip(examples, predictions, states, strict=True)
    ]
    return states, _average(examples, values, {})


def _average(examples: Sequence[Example], values: Sequence[float], parts: dict[str, float | None]) -> dict[str, Any]:
    """The mean over questions; where only some have a picture, the mean over these as a part."""
    pictured = [value for example, value in zip(examples, values, strict=True) if example.image is not None]
    if 0 < len(pictured) < len(values):
        parts["with_picture"] = 100 * sum(pictured) / len(pictured)
    by_id = dict(zip((example.question_id for example in examples), values, strict=True))
    return {"value": 100 * sum(values) / len(values), "values": by_id, "parts": parts}


def _judge_captions(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Judgement:
    """Judge by a metric of the whole corpus, which gives the values of the questions only beside its own."""
    from eval.metrics.captions import CAPTION_METRICS  # loads the caption scorers, which no other task needs

    texts = [prediction.text for prediction in predictions]
    references = [example.accepted for example in examples]
    corpus = CAPTION_METRICS[settings.metric](texts, references, settings.tokenizer)
    ids = [example.question_id for example in examples]
    states = [_find_state(prediction, prediction.text) for prediction in predictions]
    return states, {
        "metric": corpus.metric,
        "value": corpus.value,
        "values": dict(zip(ids, corpus.values, strict=True)),
        "reason": corpus.reason,
        "parts": corpus.parts,
        "aggregate": corpus.aggregate,
        "statistics": dict(zip(ids, corpus.statistics, strict=True)),
    }


def _find_state(prediction: Prediction, answer: Answer | None) -> str:
    if prediction.error is not None:
        return "failed"
    if not prediction.text.strip():
        return "empty"
    return "unparsed" if answer is None else "scored"


def _cluster_by_picture(examples: Sequence[Example]) -> dict[str, str]:
    """The picture of each question where some picture has several; a question without one stands for itself."""
    pictures = {example.question_id: example.image or f"question {example.question_id}" for example in examples}
    return pictures if len(set(pictures.values())) < len(pictures) else {}


def align(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Put the predictions into the order of the questions. Raises UserError unless each question has exactly one."""
    if not examples:
        raise UserError("the question file holds no question")
    ids = [example.question_id for example in examples]
    expected, counts = set(ids), Counter(prediction.question_id for prediction in predictions)
    wrong = {
        "missing": [name for name in ids if name not in counts],
        "doubled": [name for name, count in counts.items() if count > 1],
        "unknown": [name for name in counts if name not in expected],
    }
    problems = [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in wrong.items() if names]
    if problems:
        raise UserError(f"question ids do not match {len(ids)} questions: {'; '.join(problems)}")
    by_id = {prediction.question_id: prediction for prediction in predictions}
    return [by_id[name] for name in ids]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _read_references(settings: Scoring, examples: Sequence[Example]) -> list[list[Answer]]:
    """Parse the references of every question by the task's parser. Raises UserError for one that it cannot read."""
    problems = [
        f"question {example.question_id}: {problem}"
        for example in examples
        if (problem := explain_unreadable(settings.parse, example))
    ]
    if problems:
        raise UserError("\n".join(first_few(problems, NAMED)))
    parse = PARSERS[settings.parse]
    parsed = ([parse(reference, example.choices) for reference in example.accepted] for example in examples)
    return [[reference for reference in references if reference is not None] for references in parsed]
