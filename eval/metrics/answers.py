"""Metrics of short answers, boxes and captions; each compares an answer with its references and gives 0 to 1.

A metric gets an answer that its parser has read (never an empty one) and the references, read the same way. For
each of them an answer equal to every reference is worth 1 and an empty text 0.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from eval.parse import NUMBER_WORDS, Answer, Box, join_thousands
from eval.punctuation import even_out_marks, separate_other_marks

MAX_ORDER = 4  # of n-grams
ARTICLES = frozenset(("a", "an", "the"))
_FULL_STOP = re.compile(r"\.(?!\d)")  # not the point of a number

_JOINING = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")
_DROPPED = re.compile("['`]")
_SEPARATING = re.compile('[,;:!?"()\\[\\]{}<>_*$€£|\\\\]')


def normalise(text: str) -> str:
    """Normalise an answer so that case, punctuation of any script, articles and number words do not matter.

    `The Book.` -> `book`, `1,000` -> `1000`, `t-shirt` -> `t shirt`, `Two` -> `2`; `-5`, `3.5` and `50%` stay.
    What consists of nothing else (`A`, `?`) stays as it is, so that the option `A` does not become empty.
    """
    evened = even_out_marks(text)
    spaced = _DROPPED.sub("", join_thousands(_without_case(separate_other_marks(evened))))
    spaced = _FULL_STOP.sub(" ", _SEPARATING.sub(" ", _JOINING.sub(" ", spaced)))
    words = [NUMBER_WORDS.get(word, word) for word in spaced.split()]
    return " ".join(word for word in words if word not in ARTICLES) or " ".join(words) or _without_case(evened)


def _without_case(text: str) -> str:
    """A text without case and typographic forms (`ﬁ`, `²`), white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_match(answer: Answer, references: Sequence[Answer]) -> float:
    """1 if the answer equals a reference after `normalise`. An empty answer equals nothing.

    Published code: compares upper case only, or takes a substring either way, so that an empty answer is right.
    """
    text = normalise(str(answer))
    return float(bool(text) and any(text == normalise(str(reference)) for reference in references))


_DIGITS = {**NUMBER_WORDS, "none": "0"}
_STEMS = {  # of contractions, by their ending; `its`, `well`, `were` and their kind are words without an apostrophe
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could i might must not should they we what where who would you",
    "'d": "he how it somebody someone something there they where who y'all you",
    "'d've": "he i it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'re": "there they what why you",
    "'s": "he how let she somebody someone something that there what when where who why",
    "'m": "i",
}
_CONTRACTIONS = {
    (stem + ending).replace("'", ""): stem + ending for ending, stems in _STEMS.items() for stem in stems.split()
} | {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "owsat": "'ow's'at"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED_DIGITS = re.compile(r"\d,\d")


@functools.lru_cache(maxsize=1 << 16)
def normalise_vqa(text: str) -> str:
    """Normalise an answer as the VQA evaluation does.

    Case; `one` to `ten`, `zero` and `none` as digits; no article; contractions with their apostrophe (`dont` is
    `don't`, but `dogs` is not `dog's`); punctuation of any script goes, or becomes a space where it stands between two
    letters; a full stop stays only before a digit. What consists of articles alone stays, so that the answer `A` is not
    empty.
    Source: https://visualqa.org/evaluation.html
    """
    evened = even_out_marks(text)
    words = _FULL_STOP.sub("", _drop_punctuation(_without_case(separate_other_marks(evened)))).split()
    kept = [_DIGITS.get(word, word) for word in words if word not in ARTICLES] or words
    return " ".join(_CONTRACTIONS.get(word.replace("'", ""), word) for word in kept) or _without_case(evened)


def _drop_punctuation(text: str) -> str:
    """Drop each mark that stands beside a space somewhere, all if the text holds `1,000`; others become a space."""
    grouped = _GROUPED_DIGITS.search(text) is not None
    marks: dict[str, str | int | None] = {
        mark: "" if grouped or f"{mark} " in text or f" {mark}" in text else " " for mark in _PUNCTUATION
    }
    return text.translate(str.maketrans(marks))


def vqa_soft(answer: Answer, references: Sequence[Answer]) -> float:
    """The VQA accuracy: min(#agreeing / 3, 1), averaged over the sets that leave one reference out.

    With fewer than four references no answer could reach 1, so there one that agrees is enough.
    Source: https://visualqa.org/evaluation.html
    """
    text = normalise_vqa(str(answer))
    agree = [bool(text) and text == normalise_vqa(str(reference)) for reference in references]
    total = sum(agree)
    if len(references) < 4:
        return float(total > 0)
    return sum(min((total - one) / 3, 1.0) for one in agree) / len(agree)


def intersection_over_union(one: Box, other: Box) -> float:
    """Intersection over union (IoU) of two boxes, 0..1; equal boxes give 1 even if their area is 0."""
    if one == other:
        return 1.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - overlap
    return overlap / union if union > 0 else 0.0


def best_iou(answer: Answer | None, references: Sequence[Answer]) -> float:
    """The highest IoU with any of the references; 0 if the answer is no box."""
    return max(
        (intersection_over_union(box, other) for box in _boxes([answer]) for other in _boxes(references)), default=0.0
    )


def _boxes(answers: Iterable[Answer | None]) -> list[Box]:
    return [answer for answer in answers if isinstance(answer, tuple)]


def iou_at_half(answer: Answer, references: Sequence[Answer]) -> float:
    """1 if the box overlaps a reference with an IoU above one half (strictly above, as in the published code)."""
    return float(best_iou(answer, references) > 0.5)


def ngram_f1(answer: Answer, references: Sequence[Answer]) -> float:
    """F1 of a caption's clipped n-gram counts, averaged over n = 1..4, with the best of the references.

    Orders for which neither text is long enough are left out, so a caption equal to a reference gives 1 whatever
    its length. Bounded by 0 and 1, unlike CIDEr, and needs nothing but Python.
    """
    return max(_ngram_f1(normalise(str(answer)), normalise(str(reference))) for reference in references)


def _ngram_f1(one: str, other: str) -> float:
    left, right = one.split(), other.split()
    orders = range(1, min(MAX_ORDER, max(len(left), len(right))) + 1)
    return sum(_f1(_ngrams(left, n), _ngrams(right, n)) for n in orders) / len(orders) if orders else 0.0


def _f1(one: Counter, other: Counter) -> float:
    return 2 * (one & other).total() / (one.total() + other.total())


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


Metric = Callable[[Answer, Sequence[Answer]], float]


def top_1(answer: Answer, references: Sequence[Answer]) -> float:
    """1 if the class is the right one. Names of classes are compared as they are: nothing but their list made them."""
    return float(answer in references)


ANSWER_METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "iou_at_half": iou_at_half,
    "ngram_f1": ngram_f1,
    "top_1": top_1,
    "vqa_soft": vqa_soft,
}
