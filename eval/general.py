"""General benchmarks (POPE, MME, MMBench) are asked and scored by lmms-eval; here its files become scores of ours.

lmms-eval ends with status 0 and without results when it fails, turns an error while it answers into an empty answer,
and does not write its version: so whatever can be checked is, and answers that are no answers are counted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge.records import Score
from robustmerge.runs import UserError
from robustmerge.settings import ConfigError, later, suggest

LMMS_EVAL = "0.7.3"
TASKS = ("pope", "mme", "mmbench_en_dev_static")  # the names of the paper's table 3 in that version
RESULTS = re.compile(r"\d{8}_\d{6}_results\.json")
FAILED = "in generating"  # what the log says of an answer that became ""
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")  # of MME
NO_FAMILY = "no figure of this task is known to be its score; all that lmms-eval gives are parts"


@dataclass(frozen=True)
class GeneralRun:
    """How a source is asked the questions of one task of lmms-eval.

    template: name of the conversation template; image: pad or crop; precision: of the weights; version: of lmms-eval,
    with which the task's questions, prompt and scorer are fixed. limit: ask the first so many questions only.
    """

    task: str
    template: str
    image: str = "pad"
    precision: str = "fp32"
    version: str = LMMS_EVAL
    limit: int | None = later(None)

    def __post_init__(self) -> None:
        problems = []
        if not re.fullmatch(r"[\w-]+", self.task):
            problems.append(
                f"a task of lmms-eval has a name of letters, digits, _ and -, got '{self.task}' (tasks_general)"
            )
        if self.task in ("mmbench_en", "mmbench_en_dev"):
            take = "take mmbench_en_dev_static (tasks_general)"
            problems.append(f"{self.task} asks a model of OpenAI about unclear answers; {take}")
        if self.limit is not None and self.task.startswith("mme") and self.limit % 2:
            problems.append(f"MME is scored by pairs of questions: limit must be even, got {self.limit} (limit)")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Told:
    """What lmms-eval wrote of one task. figures: metric -> value as given; samples: one a question."""

    figures: dict[str, float]
    samples: list[dict[str, Any]]
    n_asked: int
    n_all: int


def find_results(folder: Path, task: str) -> tuple[Path, Path]:
    """lmms-eval's two files of a task. Raises UserError if one is not there."""
    found = sorted(path for path in Path(folder).rglob("*.json") if RESULTS.fullmatch(path.name))
    if not found:
        raise UserError(f"lmms-eval wrote no results into {folder}")
    if len(found) > 1:
        raise UserError(f"{folder} holds results of several runs of lmms-eval ({found[0].name}, {found[1].name}, ...)")
    samples = found[0].with_name(found[0].name.replace("_results.json", f"_samples_{task}.jsonl"))
    _figures_of(_read_json(found[0]), task, found[0])
    if not samples.exists():
        raise UserError(f"lmms-eval wrote no answers of {task} beside {found[0]} (it must run with --log_samples)")
    return found[0], samples


def read_told(results: Path, samples: Path, run: GeneralRun) -> Told:
    """What the two files say. Raises UserError if the task is not in them, or they are not whole."""
    told = _read_json(results)
    figures = _figures_of(told, run.task, results)
    try:
        lines = samples.read_text(encoding="utf-8").split("\n")
        answers = sorted((json.loads(line) for line in lines if line), key=lambda sample: sample["doc_id"])
        n_all, n_asked = (int(told["n-samples"][run.task][key]) for key in ("original", "effective"))
        backend = told["config"]["model_backend"]
    except (ValueError, KeyError, TypeError) as error:
        other = f"files of another version of lmms-eval than {run.version}"
        raise UserError(f"{results} and {samples.name} cannot be read ({error!r}): they may be {other}") from error
    if not backend.endswith("llava_hf.LlavaHf (chat)"):
        raise UserError(f"{results}: the answers are of the model class '{backend}', not of llava_hf by chat messages")
    wanted = n_all if run.limit is None else min(run.limit, n_all)
    ids = {sample["doc_id"] for sample in answers}
    if not len(answers) == len(ids) == n_asked == wanted:
        counts = f"{len(answers)} answers to {len(ids)} questions, {n_asked} announced"
        raise UserError(f"{samples}: {counts}, and {wanted} of {n_all} were to be asked")
    return Told(figures, answers, n_asked, n_all)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no file of results: {error}") from error


def _figures_of(told: Any, task: str, path: Path) -> dict[str, float]:
    found = told.get("results") if isinstance(told, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no results: it may be of another version of lmms-eval than {LMMS_EVAL}")
    if task not in found:
        raise UserError(f"{path} has no task '{task}'; {suggest(task, found)}. A group has no score: name its tasks")
    named = {key.removesuffix(",none"): value for key, value in found[task].items() if key.endswith(",none")}
    return {k: float(v) for k, v in named.items() if isinstance(v, (int, float)) and "_stderr" not in k}


def score_told(told: Told, run: GeneralRun, n_failed: int = 0) -> Score:
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


def _score_pope(told: Told) -> dict[str, Any]:
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


def _score_mme(told: Told) -> dict[str, Any]:
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


def _score_mmbench(told: Told) -> dict[str, Any]:
    """lmms-eval's figure: a question counts if it is right in every order of its options. No value by question."""
    return {"metric": "mmbench_circular", "value": told.figures["gpt_eval_score"], "values": {}}


def _score_other(told: Told) -> dict[str, Any]:
    return {"metric": "lmms_eval", "value": None, "reason": NO_FAMILY, "parts": dict(told.figures), "values": {}}


FAMILIES: dict[str, Callable[[Told], dict[str, Any]]] = {
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


def differs(run: GeneralRun, usual: GeneralRun) -> str:
    """What a run has otherwise than usual, for its title: ` (image=crop)`; "" for nothing."""
    found = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "task"}
    changed = [f"{name}={value}" for name, value in found.items() if value != getattr(usual, name)]
    return f" ({', '.join(changed)})" if changed else ""
