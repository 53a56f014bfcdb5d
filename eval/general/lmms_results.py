"""General benchmarks (POPE, MME, MMBench) are asked and scored by lmms-eval: how they are asked, and its files read.

lmms-eval ends with status 0 and without results when it fails, turns an error while it answers into an empty answer,
and does not write its version: so whatever can be checked is, and answers that are no answers are counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge.stage.records import Score
from robustmerge.stage.settings import Problem, UserError, later, refuse, suggest

LMMS_EVAL = "0.7.3"
RESULTS = re.compile(r"\d{8}_\d{6}_results\.json")
FAILED = "in generating"  # what the log says of an answer that became ""


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
            rule = "a task of lmms-eval has a name of letters, digits, _ and -"
            problems.append(Problem(f"{rule}, got '{self.task}'", "tasks_general"))
        if self.task in ("mmbench_en", "mmbench_en_dev"):
            take = "take mmbench_en_dev_static"
            problems.append(
                Problem(f"{self.task} asks a model of OpenAI about unclear answers; {take}", "tasks_general")
            )
        if self.limit is not None and self.task.startswith("mme") and self.limit % 2:
            problems.append(
                Problem(f"MME is scored by pairs of questions: limit must be even, got {self.limit}", "limit")
            )
        refuse(problems)


@dataclass(frozen=True)
class GeneralResult:
    """A source and its scores, by the title of their column (the task, with what its run has otherwise than usual).

    name: as the paper's table 3 is keyed: zero_shot, multi_task, or the method.
    """

    title: str
    kind: str
    scores: Mapping[str, Score]
    name: str = ""


@dataclass(frozen=True)
class LmmsOutput:
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


def read_output(results: Path, samples: Path, run: GeneralRun) -> LmmsOutput:
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
    return LmmsOutput(figures, answers, n_asked, n_all)


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


def describe_changes(run: GeneralRun, usual: GeneralRun) -> str:
    """What a run has otherwise than usual, for its title: ` (image=crop)`; "" for nothing."""
    found = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "task"}
    changed = [f"{name}={value}" for name, value in found.items() if value != getattr(usual, name)]
    return f" ({', '.join(changed)})" if changed else ""
