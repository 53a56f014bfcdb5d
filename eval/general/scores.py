"""Scores of POPE, MME, MMBench and other tasks, computed from the answers that lmms-eval wrote.

Figures that follow from the answers are recomputed, and must be those that lmms-eval gives.
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
NO_SCORE = "no figure of this task is known to be its score; all that lmms-eval gives are parts"


def score_output(output: LmmsOutput, run: GeneralRun, n_failed: int = 0) -> Score:
    """Score one task. n_failed: the number of answers that ended in an error, by lmms-eval's log.

    POPE: value = F1 of "yes" in per cent. MME: points of perception, 0..2000. MMBench: per cent of questions that are
    right in every order of their options. Other tasks: no value, lmms-eval's figures as parts.
    Raises UserError if a figure is not what the answers give.
    """
    scorer = next((scorer for figure, scorer in SCORERS.items() if figure in output.figures), _score_other)
    try:
        answers = [_read_answer(sample) for sample in output.samples]
        fields = scorer(output)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        other = f"of another version of lmms-eval than {run.version}"
        raise UserError(f"the answers of {run.task} cannot be scored ({error!r}): they may be {other}") from error
    n_blank = sum(not answer.strip() for answer in answers)
    if n_failed > n_blank:
        raise UserError(f"the log reports {n_failed} failed answers, and {n_blank} are empty: it is of another run")
    n_unparsed = fields.pop("n_unparsed", 0)
    n = len(answers)
    return Score(
        task=run.task,
        n_expected=n,
        n_scored=n - n_blank - n_unparsed,
        n_empty=n_blank - n_failed,
        n_unparsed=n_unparsed,
        n_failed=n_failed,
        n_asked=0 if output.n_evaluated == output.n_total else output.n_total,
        **fields,
    )


def _read_answer(sample: Mapping[str, Any]) -> str:
    answer = sample["filtered_resps"]
    return str(answer[0] if isinstance(answer, list) and answer else answer or "")


def _score_pope(output: LmmsOutput) -> dict[str, Any]:
    """POPE: F1 = 2 tp / (2 tp + fp + fn); an answer that is neither yes nor no counts nowhere, as in lmms-eval.

    parts: `f1_of_all` takes it for a missed "yes" where one was due. `said_yes` is over all answers; lmms-eval's
    `pope_yes_ratio` counts the references instead. values: right or not, by question.
    """
    pairs = [(s["pope_accuracy"]["prediction"], s["pope_accuracy"]["ground_truth"]) for s in output.samples]
    counts = Counter(pairs)
    tp, fp, fn = counts["yes", "yes"], counts["yes", "no"], counts["no", "yes"]
    due, right, n = sum(gold == "yes" for _, gold in pairs), sum(answer == gold for answer, gold in pairs), len(pairs)
    share = {
        "accuracy": right / n,
        "precision": _over(tp, tp + fp),
        "recall": _over(tp, tp + fn),
        "f1": _over(2 * tp, 2 * tp + fp + fn),
        "f1_of_all": _over(2 * tp, tp + fp + due),
        "said_yes": sum(answer == "yes" for answer, _ in pairs) / n,
    }
    for name, key in (("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("f1", "f1_score")):
        _require_equal(f"pope_{key}", output.figures, share[name])
    ids = [str(sample["doc_id"]) for sample in output.samples]
    kinds = [[float(pair == kind) for kind in (("yes", "yes"), ("yes", "no"), ("no", "yes"))] for pair in pairs]
    return {
        "metric": "pope_f1",
        "value": 100 * share.pop("f1"),
        "parts": {name: 100 * value for name, value in share.items()},
        "values": {name: float(answer == gold) for name, (answer, gold) in zip(ids, pairs, strict=True)},
        "statistics": dict(zip(ids, kinds, strict=True)),
        "aggregate": "f1",
        "n_unparsed": sum(answer not in ("yes", "no", "") for answer, _ in pairs),
    }


def _score_mme(output: LmmsOutput) -> dict[str, Any]:
    """MME: a category has 100 (accuracy + share of pictures with both questions right) points; perception sums its ten.

    parts: in points. statistics: by question, for every category of perception half a picture and half its points, in
    hundreds; clusters: the picture, whose two questions are one unit.
    """
    rows = [s.get("mme_perception_score") or s["mme_cognition_score"] for s in output.samples]
    ids = [str(sample["doc_id"]) for sample in output.samples]
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
    sums = {"perception": sum(points[c] for c in perception)}
    sums["cognition"] = sum(points[c] for c in categories if c in COGNITION)
    for name, value in sums.items():
        _require_equal(f"mme_{name}_score", output.figures, value)
    perceived = {i: key for i, key in zip(ids, keys, strict=True) if key[0] in perception}
    return {
        "metric": "mme_perception",
        "value": sums.pop("perception"),
        "parts": {**sums, **points},
        "values": {i: float(row["score"]) for i, row in zip(ids, rows, strict=True) if i in perceived},
        "statistics": {
            i: [x for c in perception for x in (0.5 * (key[0] == c), 0.5 * worth[key] * (key[0] == c))]
            for i, key in perceived.items()
        },
        "clusters": {i: "/".join(key) for i, key in perceived.items()},
        "aggregate": "sum_of_means",
    }


def _score_mmbench(output: LmmsOutput) -> dict[str, Any]:
    """MMBench: the figure of lmms-eval, by which a question counts if it is right in every order of its options."""
    return {"metric": "mmbench_circular", "value": output.figures["gpt_eval_score"], "values": {}}


def _score_other(output: LmmsOutput) -> dict[str, Any]:
    """Any other task: no value, all figures of lmms-eval as parts."""
    return {"metric": "lmms_eval", "value": None, "reason": NO_SCORE, "parts": dict(output.figures), "values": {}}


SCORERS: dict[str, Callable[[LmmsOutput], dict[str, Any]]] = {
    "pope_accuracy": _score_pope,
    "mme_perception_score": _score_mme,
    "gpt_eval_score": _score_mmbench,
}


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _require_equal(metric: str, figures: Mapping[str, float], value: float) -> None:
    figure = figures.get(metric, 0.0)
    if not math.isclose(figure, value, rel_tol=1e-9, abs_tol=1e-9):
        raise UserError(f"{metric} is {figure} in lmms-eval's results and {value} by its answers: not of one run")
