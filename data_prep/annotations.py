"""Annotation files, which add references or options to test questions whose question file leaves them out.

Three published formats are recognised by their content.
"""

from __future__ import annotations

import dataclasses
import string
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from robustmerge.stage.files import parse_json, read_text
from robustmerge.stage.records import MOST_CHOICES, Example, check_asked, format_scalar
from robustmerge.stage.settings import UserError, first_few

FORMATS = (
    "captions in COCO's format (images, annotations with image_id and caption), VQA annotations (annotations with "
    "question_id and answers), or ScienceQA's problems (an object of question_id: {choices, answer})"
)


def join_annotations(examples: Sequence[Example], path: Path) -> tuple[list[Example], str]:
    """Add a file's references or options to the examples; returns these and the kind: captions, answers or choices.

    Raises UserError naming the file if it has none of the formats, or does not fit the questions.
    """
    try:
        content = parse_json(read_text(path, "a file of annotations"), unique_keys=True)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    try:
        joined, kind = _join(examples, content)
        _refuse([problem for example in joined if (problem := _find_marker(example))])
        return joined, kind
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); expected {FORMATS}") from error


def _find_marker(example: Example) -> str:
    """What is wrong with what is asked now; "" if nothing."""
    try:
        check_asked(example)
    except ValueError as error:
        return f"question {example.question_id}: {error}"
    return ""


def _join(examples: Sequence[Example], content: Any) -> tuple[list[Example], str]:
    records = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(records, list) and records and "caption" in records[0]:
        return _join_captions(examples, content["images"], records), "captions"
    if isinstance(records, list) and records and "answers" in records[0]:
        return _join_answers(examples, records), "answers"
    problems = content.values() if isinstance(content, dict) else ()
    if problems and all(isinstance(problem, dict) and "choices" in problem for problem in problems):
        return _join_problems(examples, content), "choices"
    raise UserError(f"expected {FORMATS}")


def _join_captions(examples: Sequence[Example], images: list[dict], records: list[dict]) -> list[Example]:
    """References from COCO captions, whose images 1..n are in the order of the questions."""
    if [image["id"] for image in images] != list(range(1, len(examples) + 1)):
        raise UserError(f"its images must have the ids 1..{len(examples)}, one a question in their order")
    captions: dict[int, list[str]] = defaultdict(list)
    for record in records:
        captions[record["image_id"]].append(format_scalar(record["caption"], "a caption"))
    problems, joined = [], []
    for example, image in zip(examples, images, strict=True):
        expected, name = _base_name(example.image), _base_name(image["file_name"])
        if expected != name:
            problems.append(f"question {example.question_id} is on {expected}, image {image['id']} is {name}")
        elif not captions[image["id"]]:
            problems.append(f"image {image['id']} ({name}) has no caption")
        joined.append(_with_references(example, captions[image["id"]]))
    _refuse(problems)
    return joined


def _base_name(path: str | None) -> str | None:
    return None if path is None else PurePosixPath(path).name


def _join_answers(examples: Sequence[Example], records: list[dict]) -> list[Example]:
    """References from VQA annotations, ten for each question."""
    answers = {
        format_scalar(record["question_id"], "question_id"): [
            format_scalar(one["answer"], "an answer") for one in record["answers"]
        ]
        for record in records
    }
    if len(answers) < len(records):
        raise UserError(f"question_id is not unique: {len(records)} annotations are on {len(answers)} questions")
    _refuse_missing(examples, answers)
    _refuse([f"question {one.question_id} has no answer" for one in examples if not answers[one.question_id]])
    return [_with_references(example, answers[example.question_id]) for example in examples]


def _join_problems(examples: Sequence[Example], problems: dict[str, dict]) -> list[Example]:
    """Options from ScienceQA's problems and the letter of the right one, the only answer that its scorer reads."""
    _refuse_missing(examples, problems)
    joined = []
    for example in examples:
        problem = problems[example.question_id]
        texts, answer = problem["choices"], problem["answer"]
        if not isinstance(texts, list) or len(texts) > MOST_CHOICES:
            raise UserError(f"question {example.question_id} must have a list of at most {MOST_CHOICES} choices")
        choices = tuple(format_scalar(text, "a choice") for text in texts)
        if isinstance(answer, bool) or answer not in range(len(choices)):
            raise UserError(f"question {example.question_id} has {len(choices)} choices but no such answer")
        letter = string.ascii_uppercase[int(answer)]
        if example.choices not in ((), choices):
            raise UserError(f"question {example.question_id} has other choices in its question file")
        joined.append(dataclasses.replace(example, choices=choices, answer=letter, references=()))
    return joined


def _with_references(example: Example, references: Sequence[str]) -> Example:
    """The example with references; an answer of the question file stays, as the published scorers compare with it."""
    return dataclasses.replace(
        example, references=tuple(references), answer=example.answer or next(iter(references), "")
    )


def _refuse_missing(examples: Sequence[Example], annotated: dict[str, Any]) -> None:
    _refuse([f"question {one.question_id} is not in it" for one in examples if one.question_id not in annotated])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} questions do not fit:", *first_few(problems)]))
