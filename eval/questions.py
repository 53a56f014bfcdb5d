"""Readers of question files: all questions or a selection, as they are or as the prompts that a model sees."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from eval.parse import PARSERS, Box
from eval.settings import ALL, Selection
from robustmerge.stage.address import get_mapping, read_manifest
from robustmerge.stage.prompts import render
from robustmerge.stage.records import Example, Prediction, read_examples
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

T = TypeVar("T", Example, Prediction)
OUTSIDE = 0.02  # of the padded square: how far a box may stand out of its picture, as its sides are rounded
_INDEX = re.compile(r"\d{1,2}")


def first_by_hash(examples: Sequence[T], count: int) -> list[T]:
    """The questions, or answers, with the smallest sha256 of their id: an arbitrary sample, the same in every run."""
    return sorted(examples, key=lambda one: hashlib.sha256(one.question_id.encode()).digest())[:count]


def read_questions(questions: Path, only: Selection = ALL) -> list[Example]:
    """The selected examples of a question file, in its order.

    Raises UserError if the file is empty or an id is not in it.
    """
    examples = read_examples(questions)
    if not examples:
        raise UserError(f"{questions} holds no question")
    if only.is_all:
        return examples
    if unknown := sorted(set(only.ids) - {example.question_id for example in examples}):
        some = ", ".join(example.question_id for example in examples[:3])
        raise UserError(f"{questions} has no question {', '.join(unknown[:5])} (ids); its ids are like {some}")
    ids = set(only.ids or [example.question_id for example in first_by_hash(examples, only.limit or 0)])
    return [example for example in examples if example.question_id in ids]


def read_prompts(questions: Path, prompt: str, only: Selection = ALL) -> list[Example]:
    """The selected examples, each with its rendered prompt as text.

    Raises UserError as `read_questions`, and if a question cannot be rendered.
    """
    examples = read_questions(questions, only)
    try:
        return [dataclasses.replace(example, text=render(prompt, example)) for example in examples]
    except UserError as error:
        raise UserError(f"{questions}: {error}") from error


def explain_unreadable(parse: str, example: Example) -> str:
    """What is wrong with the answers that a question accepts, as a task's parser reads them; "" if nothing is."""
    letters = string.ascii_uppercase[: len(example.choices)]
    advice = f"; give the letter of a choice, {letters[0]} to {letters[-1]}" if parse == "letter" and letters else ""
    for answer in example.accepted:
        parsed = PARSERS[parse](answer, example.choices)
        if parsed is None:
            return f"its answer {quote(answer)} cannot be read with parse={parse}{advice}"
        if parse == "table" and example.choices and _fold(answer) not in map(_fold, example.choices):
            return f"its answer {quote(answer)} is none of its choices {quote(list(example.choices))}"
        if isinstance(parsed, tuple) and example.size is not None and (problem := _explain_box(parsed, example.size)):
            return f"its box {quote(answer)} {problem}"
        if advice and _INDEX.fullmatch(answer) and int(answer) <= len(letters):
            return f"its answer {quote(answer)} may be the text of a choice or its number{advice}"
    return ""


def _fold(text: str) -> str:
    """An option's text without case and further spaces, as `parse_letter` compares it."""
    return " ".join(text.split()).casefold()


def _explain_box(box: Box, size: tuple[int, int]) -> str:
    """What is wrong with a box x1, y1, x2, y2 in units of the padded square, in which the picture is centred."""
    longer = max(size)
    if not (box[0] < box[2] and box[1] < box[3]):
        return "has no area"
    for low, high, side in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        margin = (longer - side) / 2 / longer - OUTSIDE
        if low < margin or high > 1 - margin:
            return f"stands out of the picture of {size[0]} x {size[1]} pixels, in units of the padded square"
    return ""


def count_left_out(questions: Path) -> int:
    """How many questions of a prepared split are missing because they, or their pictures, could not be used."""
    manifest = questions.parent / "manifest.json"
    record = read_manifest(manifest)["record"] if manifest.exists() else {}
    return sum(get_mapping(get_mapping(record, "rejected"), questions.stem).values())


def format_expected(example: Example) -> str:
    """Format all answers that count as right, each once."""
    return " / ".join(dict.fromkeys(example.accepted))


def format_answer(prediction: Prediction) -> str:
    """The answer of a model, or why there is none."""
    if prediction.error is not None:
        return f"(failed: {prediction.error})"
    return prediction.text.strip() or "(empty)"
