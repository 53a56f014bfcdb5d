"""From what lmms-eval wrote of a task to a score of ours: POPE, MME and MMBench, and any other task as it is.

What can be recomputed from the answers is, and must be the figure that lmms-eval gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.general.lmms_results import GeneralRun, LmmsOutput
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")  # of MME
NO_FAMILY = "no figure of this task is known to be its score; all that lmms-eval gives are parts"


def score_output(told: LmmsOutput, run: GeneralRun, n_failed: int = 0) -> Score:
    """The score of one task. n_failed: answers that ended in an error, by the log.

    POPE: value = F1 of "yes" in per cent. MME: points of perception, 0..2000. MMBench: per cent of questions that are
    right in every order of their options. Other tasks: no value, lmms-eval's figures as parts.
    Raises UserError if a figure is not what the answers give.
    """
    answers = [_answer_of(sample) for sample in told.samples]
    n_blank = sum(not answer.strip() for answer in answers)
    if n_failed > n_blank:
        raise UserError(f"the log tells of {n_failed} failed answers, and {n_blank} are empty: it is of another run")
    family = next((read for key, read in FAMILIES.items() if key in told.figures), _score_other)
    found = family(told)
    n_unparsed = found.pop("n_unparsed", 0)
    n = len(answers)
    return Score(
        task=run.task,
        n_expected=n,
        n_scored=n - n_blank - n_unparsed,
        n_empty=n_blank - n_failed,
        n_unparsed=n_unparsed,
        n_failed=n_failed,
        n_asked=0 if told.n_asked == told.n_all else told.n_all,
        **found,
    )


def _answer_of(sample: Mapping[str, Any]) -> str:
    found = sample["filtered_resps"]
    return str(found[0] if isinstance(found, list) and found else found or "")


def _score_pope(told: LmmsOutput) -> dict[str, Any]:
    """F1 = 2 tp / (2 tp + fp + fn), where an answer that is neither yes nor no counts nowhere, as lmms-eval has it.

    parts: `f1_of_all` takes it for a missed "yes" where one was due. `said_yes` is over all answers; lmms-eval's
    `pope_yes_ratio` counts the references instead. values: right or not, by question.
    """
    pairs = [(s["pope_accuracy"]["prediction"], s["pope_accuracy"]["ground_truth"]) for s in told.samples]
    counts = Counter(pairs)
    tp, fp, fn = counts["yes", "yes"], counts["yes", "no"], counts["no", "yes"]
    due, right, n = sum(gold == "yes" for _, gold in pairs), sum(said == gold for said, gold in pairs), len(pairs)
    share = {
        "accuracy": right / n,
        "precision": _over(tp, tp + fp),
        "recall": _over(tp, tp + fn),
        "f1": _over(2 * tp, 2 * tp + fp + fn),
        "f1_of_all": _over(2 * tp, tp + fp + due),
        "said_yes": sum(said == "yes" for said, _ in pairs) / n,
    }
    for name, key in (("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("f1", "f1_score")):
        _check(f"pope_{key}", told.figures, share[name])
    ids = [str(sample["doc_id"]) for sample in told.samples]
    kinds = [[float(pair == kind) for kind in (("yes", "yes"), ("yes", "no"), ("no", "yes"))] for pair in pairs]
    return {
        "metric": "pope_f1",
        "value": 100 * share.pop("f1"),
        "parts": {name: 100 * value for name, value in share.items()},
        "values": {name: float(said == gold) for name, (said, gold) in zip(ids, pairs, strict=True)},
        "statistics": dict(zip(ids, kinds, strict=True)),
        "aggregate": "f1",
        "n_unparsed": sum(said not in ("yes", "no", "") for said, _ in pairs),
    }


def _score_mme(told: LmmsOutput) -> dict[str, Any]:
    """Per category 100 (accuracy + share of pictures with both questions right); perception is the sum of its ten.

    parts: in points. statistics: by question, for every category of perception half a picture and half its points, in
    hundreds; clusters: the picture, whose two questions are one unit.
    """
    rows = [s.get("mme_perception_score") or s["mme_cognition_score"] for s in told.samples]
    ids = [str(sample["doc_id"]) for sample in told.samples]
    keys = [(row["category"], str(row["question_id"])) for row in rows]
    right: Counter[tuple[str, str]] = Counter()
    for key, row in zip(keys, rows, strict=True):
        right[key] += row["score"] == 1
    if odd := [key for key, count in Counter(keys).items() if count != 2]:
        raise UserError(f"MME has two questions a picture; '{odd[0][1]}' of {odd[0][0]} has another number")
    worth = {key: (0.0, 0.5, 2.0)[count] for key, count in right.items()}  # accuracy + both right
    categories = list(dict.fromkeys(category for category, _ in keys))
    points = {c: 100 * _mean([worth[key] for key in worth if key[0] == c]) for c in categories}
    perception = [category for category in categories if category not in COGNITION]
    told_of = {"perception": sum(points[c] for c in perception)}
    told_of["cognition"] = sum(points[c] for c in categories if c in COGNITION)
    for name, value in told_of.items():
        _check(f"mme_{name}_score", told.figures, value)
    shown = {i: key for i, key in zip(ids, keys, strict=True) if key[0] in perception}
    return {
        "metric": "mme_perception",
        "value": told_of.pop("perception"),
        "parts": {**told_of, **points},
        "values": {i: float(row["score"]) for i, row in zip(ids, rows, strict=True) if i in shown},
        "statistics": {
            i: [x for c in perception for x in (0.5 * (key[0] == c), 0.5 * worth[key] * (key[0] == c))]
            for i, key in shown.items()
        },
        "clusters": {i: "/".join(key) for i, key in shown.items()},
        "aggregate": "sum_of_means",
    }


def _score_mmbench(told: LmmsOutput) -> dict[str, Any]:
    """lmms-eval's figure: a question counts if it is right in every order of its options. No value by question."""
    return {"metric": "mmbench_circular", "value": told.figures["gpt_eval_score"], "values": {}}


def _score_other(told: LmmsOutput) -> dict[str, Any]:
    return {"metric": "lmms_eval", "value": None, "reason": NO_FAMILY, "parts": dict(told.figures), "values": {}}


FAMILIES: dict[str, Callable[[LmmsOutput], dict[str, Any]]] = {
    "pope_accuracy": _score_pope,
    "mme_perception_score": _score_mme,
    "gpt_eval_score": _score_mmbench,
}


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(metric: str, figures: Mapping[str, float], value: float) -> None:
    given = figures.get(metric, 0.0)
    if not math.isclose(given, value, rel_tol=1e-9, abs_tol=1e-9):
        raise UserError(f"{metric} is {given} in lmms-eval's results and {value} by its answers: not of one run")
