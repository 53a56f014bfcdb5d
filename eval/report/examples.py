"""The section of examples: a few questions of each task with their pictures and every source's answer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import image as pictures

from eval.questions import first_by_hash, format_answer, format_expected
from eval.report.formats import escape_markdown
from eval.report.results import CHOSEN, Context, ResultGroup, list_seeds, lower_first
from eval.report.tables import MISSING
from eval.settings import Task
from robustmerge.stage.pictures import PictureError, read_picture
from robustmerge.stage.prompts import show_choices
from robustmerge.stage.records import Example, Prediction, read_examples, read_predictions
from robustmerge.stage.text import shorten

EXAMPLES_A_TASK = 3
LONGEST_SIDE = 192  # pixels
LONGEST_ANSWER = 160  # characters
LONGEST_QUESTION = 2000


@dataclass(frozen=True)
class ShownAnswer:
    """A source's answer in the examples. value: its score 0..1; None if it was not scored."""

    source: str
    text: str
    value: float | None


@dataclass(frozen=True)
class ShownQuestion:
    """An example question with all answers to it. picture: PNG, None if there is none to show."""

    question_id: str
    text: str
    expected: str
    picture: bytes | None
    answers: tuple[ShownAnswer, ...]


def pick_examples(groups: Sequence[ResultGroup], context: Context) -> dict[str, list[ShownQuestion]]:
    """Pick the questions to show, by task: those with the smallest sha256 of their id, the same in every run."""
    return {task.name: _pick(task, path, groups) for task, path in context.question_files()}


def select_example_groups(groups: Sequence[ResultGroup]) -> list[ResultGroup]:
    """Select one block, the first with a chosen strength if any, and its references, to keep the section short."""
    in_blocks = [group for group in groups if group.block]
    if not in_blocks:
        return list(groups)
    shown = next((group for group in in_blocks if group.first.variant == CHOSEN), in_blocks[0])
    references = [group for group in groups if not group.block and group.first.facet in ("", shown.first.facet)]
    return [*references, *(group for group in in_blocks if group.block == shown.block)]


def _pick(task: Task, path: Path, groups: Sequence[ResultGroup]) -> list[ShownQuestion]:
    answered = [group for group in select_example_groups(groups) if _has_predictions(group, task)]
    answers = {group.title: _read_answers(group, task) for group in answered}
    questions = first_by_hash(read_examples(path), EXAMPLES_A_TASK)
    return [_show(question, path.parent, task, answered, answers) for question in questions]


def _has_predictions(group: ResultGroup, task: Task) -> bool:
    """Whether there is a score and a file of answers; of several seeds the first is shown."""
    files = group.first.predictions
    return task.name in group.first.scores and task.name in files and Path(files[task.name]).exists()


def _read_answers(group: ResultGroup, task: Task) -> dict[str, Prediction]:
    predictions = read_predictions(group.first.predictions[task.name])
    return {prediction.question_id: prediction for prediction in predictions}


def _show(
    example: Example,
    folder: Path,
    task: Task,
    groups: Sequence[ResultGroup],
    predictions: Mapping[str, Mapping[str, Prediction]],
) -> ShownQuestion:
    answers = []
    for group in groups:
        prediction = predictions[group.title].get(example.question_id)
        value = group.first.scores[task.name].values.get(example.question_id)
        text = MISSING if prediction is None else format_answer(prediction)
        answers.append(ShownAnswer(group.short_title, text, value))
    picture = _make_thumbnail(folder, example.image)
    return ShownQuestion(example.question_id, *format_question(example), picture, tuple(answers))


def format_question(example: Example) -> tuple[str, str]:
    """The question with its choices, and what counts as right."""
    text = example.text
    if example.choices:
        text += f" [{'; '.join(show_choices(example.choices).splitlines())}]"
    return text, format_expected(example)


def read_pixels(folder: Path, name: str | None) -> np.ndarray | None:
    """Read and shrink a picture, [height, width(, channels)] in 0..1; None if unreadable: no report fails for that."""
    if name is None:
        return None
    try:
        picture = read_picture(folder / name)
    except PictureError:
        return None
    return _shrink(np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB")) / 255.0)


def _make_thumbnail(folder: Path, name: str | None) -> bytes | None:
    pixels = read_pixels(folder, name)
    if pixels is None:
        return None
    file = io.BytesIO()
    leave_out_version = {"Software": None}
    pictures.imsave(file, pixels, format="png", cmap="gray", metadata=leave_out_version)  # type: ignore[arg-type]
    return file.getvalue()


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Shrink a picture by averaging blocks until no side exceeds LONGEST_SIDE. pixels: [height, width(, channels)]."""
    step = -(-max(pixels.shape[:2]) // LONGEST_SIDE)
    if step <= 1:
        return np.clip(pixels, 0, 1)
    down, across = (min(step, side) for side in pixels.shape[:2])
    height, width = pixels.shape[0] // down, pixels.shape[1] // across
    blocks = pixels[: height * down, : width * across].reshape(height, down, width, across, *pixels.shape[2:])
    return np.clip(blocks.mean(axis=(1, 3)), 0, 1)


def format_examples_section(
    groups: Sequence[ResultGroup], context: Context, examples: Mapping[str, Sequence[ShownQuestion]]
) -> str:
    """The section with a table of examples for each task; "" without examples."""
    parts = [_format_examples(task, examples[task.name]) for task in context.tasks if examples.get(task.name)]
    if not parts:
        return ""
    intro = "Questions are taken by the hash of their id, not chosen. ✓ right, ✗ wrong, a number: a part of a point."
    blocks = [group.block for group in select_example_groups(groups) if group.block]
    intro += f" Of the merged models: {lower_first(blocks[0])}." if blocks else ""
    intro += f" Answers are those of seed {list_seeds(groups)[0]}." if len(list_seeds(groups)) > 1 else ""
    intro += " `python scripts/show.py`, with the same overrides, makes a page of more.\n"
    return "## Examples\n\n" + "\n".join([intro, *parts])


def _format_examples(task: Task, questions: Sequence[ShownQuestion]) -> str:
    """Format the examples of a task as a table: a column for each question, a row for each source."""
    images = [
        f'<img src="figures/examples/{task.name}-{number}.png" width="144" alt="question {number}">'
        if question.picture is not None
        else "(no picture)"
        for number, question in enumerate(questions, start=1)
    ]
    lines = [
        f"### {escape_markdown(task.title)}\n",
        _format_line("", images),
        "| --- |" + " --- |" * len(questions),
        _format_line("Question", [_format_text(question.text) for question in questions]),
        _format_line("**Expected**", [_bold(_format_text(question.expected)) for question in questions]),
    ]
    for index, first in enumerate(questions[0].answers):
        answers = [_format_answer(question.answers[index]) for question in questions]
        lines.append(_format_line(escape_markdown(first.source), answers))
    return "\n".join([*lines, ""])


def _format_text(text: str) -> str:
    return escape_markdown(shorten(text, LONGEST_QUESTION))


def _bold(text: str) -> str:
    return f"**{text}**" if text else ""


def _format_line(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _format_answer(answer: ShownAnswer) -> str:
    """The text, shortened, with ✓, ✗ or its value."""
    mark = ""
    if answer.value is not None:
        mark = {1.0: " ✓", 0.0: " ✗"}.get(answer.value, f" {answer.value:.2f}")
    text = answer.text if len(answer.text) <= LONGEST_ANSWER else answer.text[: LONGEST_ANSWER - 1] + "…"
    return escape_markdown(text) + mark
