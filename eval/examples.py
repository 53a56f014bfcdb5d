"""A few questions of each task with their pictures and every source's answer: what the numbers are made of."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import image as pictures

from eval.results import Context, SourceResult
from eval.settings import Task
from eval.tables import MISSING
from robustmerge.records import Example, Prediction, read_examples, read_predictions

EXAMPLES_A_TASK = 3
LONGEST_SIDE = 192


@dataclass(frozen=True)
class Shown:
    """One question. picture: PNG, None if there is none to show. answers: by row title, with their value 0..1."""

    question_id: str
    text: str
    expected: str
    picture: bytes | None
    answers: tuple[tuple[str, str, float | None], ...]


def pick_examples(rows: Sequence[SourceResult], context: Context) -> dict[str, list[Shown]]:
    """By task, the questions with the smallest sha256 of their id: neither chosen nor changing from run to run."""
    found = {}
    for task in context.tasks:
        path = context.questions.get(task.name)
        if path is not None and Path(path).exists():
            found[task.name] = _pick(task, Path(path), rows)
    return found


def _pick(task: Task, path: Path, rows: Sequence[SourceResult]) -> list[Shown]:
    able = [row for row in rows if task.name in row.scores and _has_predictions(row, task)]
    answers = {row.key: _answers_of(row, task) for row in able}
    examples = sorted(read_examples(path), key=lambda one: hashlib.sha256(one.question_id.encode()).digest())
    return [_show(example, path.parent, task, able, answers) for example in examples[:EXAMPLES_A_TASK]]


def _has_predictions(row: SourceResult, task: Task) -> bool:
    return task.name in row.predictions and Path(row.predictions[task.name]).exists()


def _answers_of(row: SourceResult, task: Task) -> dict[str, Prediction]:
    return {prediction.question_id: prediction for prediction in read_predictions(row.predictions[task.name])}


def _show(
    example: Example,
    folder: Path,
    task: Task,
    rows: Sequence[SourceResult],
    answers: Mapping[str, Mapping[str, Prediction]],
) -> Shown:
    lines = []
    for row in rows:
        prediction = answers[row.key].get(example.question_id)
        value = row.scores[task.name].values.get(example.question_id)
        lines.append((row.title, _say(prediction), value))
    asked = example.text
    if example.choices:
        asked += " [" + "; ".join(example.choices) + "]"
    expected = " / ".join(dict.fromkeys(example.accepted))
    return Shown(example.question_id, asked, expected, _thumbnail(folder, example.image), tuple(lines))


def _say(prediction: Prediction | None) -> str:
    if prediction is None:
        return MISSING
    if prediction.error is not None:
        return f"(failed: {prediction.error})"
    return prediction.text.strip() or "(empty)"


def _thumbnail(folder: Path, name: str | None) -> bytes | None:
    """The picture as a small PNG. A report never fails for a picture that is gone."""
    if name is None:
        return None
    try:
        pixels = pictures.imread(folder / name)
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return None
    if pixels.dtype == np.uint8:
        pixels = pixels / 255.0
    file = io.BytesIO()
    pictures.imsave(file, _shrink(pixels), format="png", cmap="gray", metadata={"Software": None})
    return file.getvalue()


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Mean over blocks, so that the longest side is at most LONGEST_SIDE. pixels: [height, width(, channels)]."""
    step = -(-max(pixels.shape[:2]) // LONGEST_SIDE)
    if step <= 1:
        return np.clip(pixels, 0, 1)
    down, across = (min(step, side) for side in pixels.shape[:2])
    height, width = pixels.shape[0] // down, pixels.shape[1] // across
    blocks = pixels[: height * down, : width * across].reshape(height, down, width, across, *pixels.shape[2:])
    return np.clip(blocks.mean(axis=(1, 3)), 0, 1)
