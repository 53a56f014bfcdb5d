"""Results of general benchmarks (POPE, MME, MMBench): the settings of an lmms-eval run, and a reader of its files.

lmms-eval ends with status 0 and without results when it fails, turns an error while it answers into an empty answer,
and does not write its version. So whatever can be checked is checked, and failed and empty answers are counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge.stage.files import parse_json, read_json, read_text
from robustmerge.stage.records import Score, is_number
from robustmerge.stage.settings import Problem, UserError, later, refuse, suggest
from robustmerge.stage.text import quote

LMMS_EVAL = "0.7.3"
RESULTS = re.compile(r"\d{8}_\d{6}_results\.json")
FAILED = "in generating"  # in the log, for each error that became an empty answer


@dataclass(frozen=True)
class GeneralRun:
    """How one task of lmms-eval is evaluated.

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
    """The general scores of one source by column title (the task, and how its run differs from the usual one).

    name: the key of its row in the paper's table 3: zero_shot, multi_task, or the method; "" if it has none.
    """

    title: str
    kind: str
    scores: Mapping[str, Score]
    name: str = ""


@dataclass(frozen=True)
class LmmsOutput:
    """What lmms-eval wrote about one task.

    figures: metric -> value, as it gives it; samples: one a question; n_evaluated of n_total questions were asked.
    """

    figures: dict[str, float]
    samples: list[dict[str, Any]]
    n_evaluated: int
    n_total: int


def find_results(folder: Path, task: str) -> tuple[Path, Path]:
    """Find the two files that lmms-eval writes for a task. Raises UserError if one is missing."""
    files = sorted(path for path in Path(folder).rglob("*.json") if RESULTS.fullmatch(path.name))
    if not files:
        raise UserError(f"lmms-eval wrote no results into {folder}")
    if len(files) > 1:
        raise UserError(f"{folder} holds results of several runs of lmms-eval ({files[0].name}, {files[1].name}, ...)")
    results = files[0]
    samples = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
    _read_figures(read_json(results, "results of lmms-eval"), task, results)
    if not samples.exists():
        raise UserError(f"lmms-eval wrote no answers of {task} beside {results} (it must run with --log_samples)")
    return results, samples


def read_output(results: Path, samples: Path, run: GeneralRun) -> LmmsOutput:
    """Read the two files of a task. Raises UserError if the task is not in them, or they are incomplete."""
    report = read_json(results, "results of lmms-eval")
    figures = _read_figures(report, run.task, results)
    try:
        n_total, n_evaluated = (_whole(report["n-samples"][run.task][key]) for key in ("original", "effective"))
        backend = report["config"]["model_backend"]
        answers = sorted(_read_samples(samples), key=lambda sample: _whole(sample["doc_id"]))
    except (ValueError, KeyError, TypeError) as error:
        other = f"files of another version of lmms-eval than {run.version}"
        raise UserError(f"{results} and {samples.name} cannot be read ({error!r}): they may be {other}") from error
    if not (isinstance(backend, str) and backend.endswith("llava_hf.LlavaHf (chat)")):
        raise UserError(f"{results}: the answers are of the model class '{backend}', not of llava_hf by chat messages")
    expected = n_total if run.limit is None else min(run.limit, n_total)
    ids = {sample["doc_id"] for sample in answers}
    if not 0 < len(answers) == len(ids) == n_evaluated == expected:
        counts = f"{len(answers)} answers to {len(ids)} questions, {n_evaluated} announced"
        raise UserError(f"{samples}: {counts}, and {expected} of {n_total} were to be asked")
    return LmmsOutput(figures, answers, n_evaluated, n_total)


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """The answers, one a line. Raises ValueError naming the first line that is no JSON object."""
    samples = []
    for number, line in enumerate(read_text(path, "answers of lmms-eval").split("\n"), start=1):
        if line:
            try:
                sample = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(sample, dict):
                raise ValueError(f"line {number} holds a {type(sample).__name__}, not an object")
            samples.append(sample)
    return samples


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{quote(value)} is no whole number")
    return value


def _read_figures(report: Mapping[str, Any], task: str, path: Path) -> dict[str, float]:
    """The figures of a task, without their standard errors."""
    results = report.get("results")
    if not isinstance(results, Mapping) or not all(isinstance(figures, Mapping) for figures in results.values()):
        raise UserError(f"{path} holds no results: it may be of another version of lmms-eval than {LMMS_EVAL}")
    if task not in results:
        raise UserError(f"{path} has no task '{task}'; {suggest(task, results)}. A group has no score: name its tasks")
    figures = {}
    for key, value in results[task].items():
        metric, _, answer_filter = key.partition(",")  # `pope_f1_score,none`: answers as they are
        if answer_filter == "none" and is_number(value) and "_stderr" not in metric:
            figures[metric] = float(value)
    return figures


def describe_changes(run: GeneralRun, usual: GeneralRun) -> str:
    """The settings in which a run differs from the usual one, for its title: ` (image=crop)`; "" for none."""
    settings = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "task"}
    changed = [f"{name}={value}" for name, value in settings.items() if value != getattr(usual, name)]
    return f" ({', '.join(changed)})" if changed else ""
