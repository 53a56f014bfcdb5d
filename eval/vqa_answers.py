"""The answer normalisation of the VQA evaluation: two answers that it takes for the same get the same form."""

from __future__ import annotations

import functools
import re
import unicodedata

from eval.parse import NUMBER_WORDS

ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = {**NUMBER_WORDS, "none": "0"}
_SHORTENED = {  # by their ending; `its`, `well`, `were` and their kind are words without an apostrophe
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
    (stem + ending).replace("'", ""): stem + ending for ending, stems in _SHORTENED.items() for stem in stems.split()
} | {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "owsat": "'ow's'at"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘´", "'"))
_GROUPED = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


@functools.lru_cache(maxsize=1 << 16)
def normalise_vqa(text: str) -> str:
    """One form for what the VQA evaluation takes for the same answer.

    Case; `one` to `ten`, `zero` and `none` as digits; no article; contractions with their apostrophe (`dont` is
    `don't`, but `dogs` is not `dog's`); punctuation goes, or becomes a space where it stands between two letters; a
    full stop stays only before a digit. What consists of articles alone stays, so that the answer `A` is not empty.
    Source: https://visualqa.org/evaluation.html
    """
    plain = " ".join(unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold().split())
    words = _FULL_STOP.sub("", _without_punctuation(plain)).split()
    kept = [_COUNTED.get(word, word) for word in words if word not in ARTICLES] or words
    return " ".join(_CONTRACTIONS.get(word.replace("'", ""), word) for word in kept) or plain


def _without_punctuation(text: str) -> str:
    """A mark is dropped everywhere if it stands beside a space somewhere, or the text holds `1,000`; else a space."""
    grouped = _GROUPED.search(text) is not None
    marks = {mark: "" if grouped or f"{mark} " in text or f" {mark}" in text else " " for mark in _PUNCTUATION}
    return text.translate(str.maketrans(marks))
