"""Scoring rules of the published scripts, faults included, so that they give the same scores to the digit.

Source: AuroraZengfh/RobustMerge @ 1212802, llava/eval; ScienceQA: haotian-liu/LLaVA @ c121f04. Each rule gets the raw
text, as the model wrote it, and the question, and gives 0 or 1; the score is 100 times the mean over all questions.
The scripts divide by the number of answers found, and ImageNet's pairs them by position; here each question has exactly
one answer before any rule is applied, so neither makes a difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError

OPTIONS = ("A", "B", "C", "D", "E")
_BRACKETS = str.maketrans("", "", "[]")
_STATED_LETTER = re.compile("The answer is ([A-Z]).")


def match_ignoring_case(text: str, example: Example) -> float:
    """VQAv2, IconQA, AOKVQA, TabMWP: equal in upper case."""
    # Fault: nothing but case is forgiven, so `3.` or `three` is not `3`, `B.` not `B`, `$5` not `5`.
    # Fault: one reference; VQAv2 has ten.
    return float(text.upper() == example.answer.upper())


def match_substring(text: str, example: Example) -> float:
    """ImageNet, ImageNet-R: one contains the other, in upper case."""
    answer, right = text.upper(), example.answer.upper()
    # Fault: the empty answer, and any fragment, is a part of every right answer.
    # Fault: an answer that lists all classes contains the right one. `Hip` is within `Whippet`.
    return float(right in answer or answer in right)


def match_ocrvqa(text: str, example: Example) -> float:
    """OCR-VQA: equal in lower case."""
    # Fault: an answer with this word is passed over but stays in the total, so a right `Unanswerable` counts as wrong.
    return float("Unanswerable" not in text and text.lower() == example.answer.lower())


def match_box(text: str, example: Example) -> float:
    """REC: the IoU with the reference is above one half, both in pixels of the padded square.

    Raises UserError if the reference is no box.
    """
    # Fault: the first and last characters are cut after the brackets are already gone, so y2 loses its last digit.
    # Fault: any word beside the box is a miss.
    box = _read_box(text.translate(_BRACKETS)[1:-1])
    right = _read_box(example.answer.translate(_BRACKETS))
    if right is None:
        raise UserError(f"question {example.question_id}: the reference {example.answer!r} is no box x1,y1,x2,y2")
    if box is None:
        return 0.0
    side = max(example.size) if example.size else 1  # the size matters to the rounding alone
    return float(_faulty_iou([side * x for x in box], [side * x for x in right]) > 0.5)


def _read_box(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def _faulty_iou(one: list[float], other: list[float]) -> float:
    """The IoU. Fault: corners stay as they are written, so the area of an inverted box is negative."""
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = areas[0] + areas[1] - width * height
    return width * height / union if union > 0 else 0.0


def match_option(text: str, example: Example) -> float:
    """ScienceQA: a letter alone, `B. ...`, or the one `The answer is B.`; it must be an option of the question."""
    # Fault: case counts, and `B.`, `B)`, `(B)` are no answers.
    # Fault: the full stop of the pattern stands for any character, but there must be one: `The answer is B` fails.
    if text in OPTIONS:
        letter = text
    elif text[:1] in OPTIONS and text[1:3] == ". ":
        letter = text[0]
    else:
        stated = _STATED_LETTER.findall(text)
        letter = stated[0] if len(stated) == 1 else ""
    # A question file without choices leaves all five letters allowed: the right one is the same.
    return float(letter in OPTIONS[: len(example.choices) or None] and letter == example.answer)


OFFICIAL_METRICS: dict[str, Callable[[str, Example], float]] = {
    "official_equal": match_ignoring_case,
    "official_ocrvqa": match_ocrvqa,
    "official_rec": match_box,
    "official_scienceqa": match_option,
    "official_substring": match_substring,
}
