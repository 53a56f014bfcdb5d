"""How a tokenizer spells the words of a task's answers: a word spelled letter by letter is hard to learn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

FEW = 3  # so many pieces are learned as easily as one
NAMED = 3  # words in a message
_WORD = re.compile(r"[^\W\d_]+")  # neither numbers nor marks, so no boxes


def count_pieces(tokenizer: PreTrainedTokenizerBase, answers: Iterable[str]) -> dict[str, int]:
    """The number of tokens of every different word of some texts, as it stands after a space; the commonest first."""
    words = [word for word, _ in Counter(word for answer in answers for word in _WORD.findall(answer)).most_common()]
    if not words:
        return {}
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
    spans = tokenizer([f" {word}" for word in words], **options)["offset_mapping"]
    return {word: sum(last > 1 for _, last in pieces) for word, pieces in zip(words, spans, strict=True)}


def list_spelled(pieces: Mapping[str, int]) -> list[str]:
    """The words that are spelled letter by letter: in more than a few pieces, and at least one for each letter.

    A small base spells out every word that it does not know. A large tokenizer has pieces of two or more letters even
    for rare names, and spells out only words in scripts that it does not know.
    """
    return [word for word, count in pieces.items() if count > FEW and count >= len(word)]


def describe_spelled(task: str, pieces: Mapping[str, int]) -> str:
    """One line on the words that a task's answers have spelled letter by letter; "" where there are none."""
    spelled = list_spelled(pieces)
    if not spelled:
        return ""
    named = ", ".join(f"{word}: {pieces[word]} pieces" for word in spelled[:NAMED])
    return (
        f"{task}: {len(spelled)} of {len(pieces)} words of the answers are spelled in pieces by this base's tokenizer "
        f"({named}{', ...' if len(spelled) > NAMED else ''}); a small base learns such words badly"
    )
