"""Annotation files, which add references or options to test questions whose question file leaves them out.

Three published formats are recognised by their content.
"""

from __future__ import annotations

import dataclasses
import string
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from robustmerge.stage.json_stream import iterate_members
from robustmerge.stage.records import MOST_CHOICES, Example, check_asked, format_scalar
from robustmerge.stage.settings import UserError

T = TypeVar("T")
FORMATS = (
    "captions in COCO's format (images, annotations with image_id and caption), VQA annotations (annotations with "
    "question_id and answers), or ScienceQA's problems (an object of question_id: {choices, answer})"
)
_RULE_OF_IDS = "its images must have the ids 1, 2, 3 ..., one a question in their order"


class Annotations(ABC):
    """What a file says of the questions of a split. kind: `captions`, `answers` or `choices`."""

    kind = ""

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def read(self, key: str, value: Any) -> None:
        """Take up one member of the file, or one element of a list in it. Raises KeyError, TypeError, ValueError."""

    def join(self, number: int, example: Example) -> Example:
        """The example with what the file says of it. number: of its row in the question file, from 1.

        Raises ValueError that says what does not fit.
        """
        joined = self._join(number, example)
        check_asked(joined)
        return joined

    @abstractmethod
    def _join(self, number: int, example: Example) -> Example: ...

    def check_count(self, rows: int) -> None:  # noqa: B027  (most kinds fit any number)
        """Raises UserError if the file is made for another number of questions."""


class Captions(Annotations):
    """COCO captions, whose images 1..n are in the order of the questions."""

    kind = "captions"

    def __init__(self, path: Path):
        super().__init__(path)
        self.names: list[str] = []
        self.captions: dict[int, list[str]] = defaultdict(list)

    def read(self, key: str, value: Any) -> None:
        if key == "images":
            if value["id"] != len(self.names) + 1:
                raise ValueError(f"{_RULE_OF_IDS}, got {value['id']} as number {len(self.names) + 1}")
            self.names.append(PurePosixPath(value["file_name"]).name)
        elif key == "annotations":
            self.captions[value["image_id"]].append(format_scalar(value["caption"], "a caption"))

    def check_count(self, rows: int) -> None:
        if len(self.names) != rows:
            raise UserError(
                f"{self.path}: {_RULE_OF_IDS}: it has {len(self.names)} images, the question file {rows} questions"
            )

    def _join(self, number: int, example: Example) -> Example:
        if number > len(self.names):
            raise ValueError(f"{self.path} has captions of {len(self.names)} images only")
        name, expected = self.names[number - 1], example.image and PurePosixPath(example.image).name
        if name != expected:
            raise ValueError(
                f"question {example.question_id} is on {expected}, image {number} in {self.path} on {name}"
            )
        captions = self.captions.get(number, ())
        return _with_references(example, captions, f"image {number} ({name}) has no caption in {self.path}")


class Answers(Annotations):
    """VQA annotations, ten answers for each question."""

    kind = "answers"

    def __init__(self, path: Path):
        super().__init__(path)
        self.answers: dict[str, tuple[str, ...]] = {}

    def read(self, key: str, value: Any) -> None:
        if key == "annotations":
            name = format_scalar(value["question_id"], "question_id")
            if name in self.answers:
                raise ValueError(f"question_id is not unique: {name}")
            self.answers[name] = tuple(format_scalar(one["answer"], "an answer") for one in value["answers"])

    def _join(self, number: int, example: Example) -> Example:
        answers = _find(self.answers, example, self.path)
        return _with_references(example, answers, f"question {example.question_id} has no answer in {self.path}")


class Problems(Annotations):
    """ScienceQA's problems: options, and the letter of the right one, the only answer that its scorer reads."""

    kind = "choices"

    def __init__(self, path: Path):
        super().__init__(path)
        self.problems: dict[str, tuple[Any, Any]] = {}

    def read(self, key: str, value: Any) -> None:
        self.problems[key] = (value["choices"], value["answer"])

    def _join(self, number: int, example: Example) -> Example:
        texts, answer = _find(self.problems, example, self.path)
        what = f"question {example.question_id} of {self.path}"
        if not isinstance(texts, list) or len(texts) > MOST_CHOICES:
            raise ValueError(f"{what} must have a list of at most {MOST_CHOICES} choices")
        choices = tuple(format_scalar(text, "a choice") for text in texts)
        if isinstance(answer, bool) or answer not in range(len(choices)):
            raise ValueError(f"{what} has {len(choices)} choices but no such answer")
        letter = string.ascii_uppercase[int(answer)]
        if example.choices not in ((), choices):
            raise ValueError(f"question {example.question_id} has other choices in its question file")
        return dataclasses.replace(example, choices=choices, answer=letter, references=())


def read_annotations(path: Path) -> Annotations:
    """Read a file of annotations, element by element.

    Raises UserError naming the file if it has none of the formats, or is damaged.
    """
    annotations, waiting, place = None, [], ""
    try:
        for element in iterate_members(path, "a file of annotations"):
            place = element.place
            if annotations is None:
                waiting.append(element)
                annotations = _recognise(path, element.key, element.value)
            if annotations is not None:
                for one in waiting or [element]:
                    annotations.read(one.key, one.value)
                waiting = []
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"is damaged at {place} ({type(error).__name__}: {error})"
        raise UserError(f"{path} {problem}; expected {FORMATS}") from error
    except ValueError as error:
        raise UserError(f"{path}, {place}: {error}") from error
    if annotations is None:
        raise UserError(f"{path}: expected {FORMATS}")
    return annotations


def _recognise(path: Path, key: str, value: Any) -> Annotations | None:
    """The kind of a file by one of its elements; None if this one does not tell."""
    if not isinstance(value, Mapping):
        return None
    if key == "annotations":
        kind = Captions if "caption" in value else Answers if "answers" in value else None
        return kind(path) if kind else None
    return Problems(path) if "choices" in value else None


def _find(annotated: Mapping[str, T], example: Example, path: Path) -> T:
    if example.question_id not in annotated:
        raise ValueError(f"question {example.question_id} is not in {path}")
    return annotated[example.question_id]


def _with_references(example: Example, texts: Iterable[str], problem: str) -> Example:
    """The example with those references that are not blank. Raises ValueError with the problem if there is none.

    An answer of the question file stays, as the published scorers compare with it.
    """
    references = tuple(text for text in texts if text.strip())
    if not references:
        raise ValueError(problem)
    return dataclasses.replace(example, references=references, answer=example.answer or references[0])
