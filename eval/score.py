"""The score stage: predictions against the references of their question file, the value of every question kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.metrics import METRICS
from eval.parse import PARSERS, Answer
from eval.settings import Scoring
from robustmerge.records import Example, Prediction, Score, read_examples, read_predictions, write_score
from robustmerge.runs import Address, UserError, run_stage

SHOWN = 5


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
        try:
            found = score_predictions(settings, read_examples(questions), read_predictions(predictions))
        except UserError as error:
            raise UserError(f"{predictions} against {questions}: {error}") from error
        write_score(path, found)
        return {"value": found.value, "questions": found.n_expected}

    return run_stage(address, work, say)


def score_predictions(settings: Scoring, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    """Score the predictions of one task.

    A question counts as failed (no answer could be generated), empty or unparsed at most once; each is worth 0.
    n_scored counts the rest. value = 100 times the mean over all questions.
    """
    aligned = align(examples, predictions)
    references = _read_references(settings, examples)
    parse, metric = PARSERS[settings.parse], METRICS[settings.metric]
    values: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for example, prediction, accepted in zip(examples, aligned, references, strict=True):
        answer = parse(prediction.text, example.choices)
        state = _state_of(prediction, answer)
        counts[state] += 1
        values[example.question_id] = metric(answer, accepted) if state == "scored" else 0.0
    return Score(
        task=settings.task,
        metric=settings.metric,
        value=100 * sum(values.values()) / len(values),
        n_expected=len(examples),
        n_scored=counts["scored"],
        n_empty=counts["empty"],
        n_unparsed=counts["unparsed"],
        n_failed=counts["failed"],
        values=values,
    )


def _state_of(prediction: Prediction, answer: Answer | None) -> str:
    if prediction.error is not None:
        return "failed"
    if not prediction.text.strip():
        return "empty"
    return "unparsed" if answer is None else "scored"


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
