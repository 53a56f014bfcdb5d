"""A few questions of each task with their pictures and every source's answer: what the numbers are made of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import image as pictures

from eval.questions import first_by_hash, format_answer, format_expected
from eval.report.results import CHOSEN, Context, ResultGroup
from eval.report.tables import MISSING
from eval.settings import Task
from robustmerge.stage.prompts import show_choices
from robustmerge.stage.records import Example, Prediction, read_examples, read_predictions

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


def pick_examples(rows: Sequence[ResultGroup], context: Context) -> dict[str, list[Shown]]:
    """By task, the questions with the smallest sha256 of their id: neither chosen nor changing from run to run."""
    found = {}
    for task in context.tasks:
        path = context.questions.get(task.name)
        if path is not None and Path(path).exists():
            found[task.name] = _pick(task, Path(path), rows)
    return found


def select_example_groups(rows: Sequence[ResultGroup]) -> list[ResultGroup]:
    """Of a large table one block with its references: the first of those with a chosen strength, if there are any."""
    blocks = [row for row in rows if row.block]
    if not blocks:
        return list(rows)
    shown = next((row for row in blocks if row.first.variant == CHOSEN), blocks[0])
    references = [row for row in rows if not row.block and row.first.facet in ("", shown.first.facet)]
    return [*references, *(row for row in blocks if row.block == shown.block)]


def _pick(task: Task, path: Path, rows: Sequence[ResultGroup]) -> list[Shown]:
    able = [row for row in select_example_groups(rows) if _has_predictions(row, task)]
    shown = first_by_hash(read_examples(path), EXAMPLES_A_TASK)
    answers = {row.key: _answers_of(row, task) for row in able}
    return [_show(example, path.parent, task, able, answers) for example in shown]


def _has_predictions(row: ResultGroup, task: Task) -> bool:
    """Whether there is a score and a file of answers; of several seeds the first is shown."""
    files = row.first.predictions
    return task.name in row.first.scores and task.name in files and Path(files[task.name]).exists()


def _answers_of(row: ResultGroup, task: Task) -> dict[str, Prediction]:
    return {prediction.question_id: prediction for prediction in read_predictions(row.first.predictions[task.name])}


def _show(
    example: Example,
    folder: Path,
    task: Task,
    rows: Sequence[ResultGroup],
    answers: Mapping[str, Mapping[str, Prediction]],
) -> Shown:
    lines = []
    for row in rows:
        prediction = answers[row.key].get(example.question_id)
        value = row.first.scores[task.name].values.get(example.question_id)
        said = MISSING if prediction is None else format_answer(prediction)
        lines.append((row.label if row.block else row.title, said, value))
    picture = _thumbnail(folder, example.image)
    return Shown(example.question_id, *words_of(example), picture, tuple(lines))


def words_of(example: Example) -> tuple[str, str]:
    """The question with its choices, and what counts as right."""
    asked = example.text
    if example.choices:
        asked += f" [{'; '.join(show_choices(example.choices).splitlines())}]"
    return asked, format_expected(example)


def read_picture(folder: Path, name: str | None) -> np.ndarray | None:
    """[height, width(, channels)] in 0..1, small. A report never fails for a picture that is gone."""
    if name is None:
        return None
    try:
        pixels = pictures.imread(folder / name)
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return None
    return _shrink(pixels / 255.0 if pixels.dtype == np.uint8 else pixels)


def _thumbnail(folder: Path, name: str | None) -> bytes | None:
    pixels = read_picture(folder, name)
    if pixels is None:
        return None
    file = io.BytesIO()
    pictures.imsave(file, pixels, format="png", cmap="gray", metadata={"Software": None})
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
