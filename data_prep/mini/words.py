"""The words that the small base reads and says as wholes, whether a task needs them or not: those of `words.txt`."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from pathlib import Path
from random import Random

WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
_BY_FREQUENCY = tuple(Random("frequency").sample(WORDS, len(WORDS)))  # not in the alphabet's order


def sample_words(rng: Random, count: int, evenness: float) -> list[str]:
    """Draw words by Zipf's law with evenness 0, each equally often with 1.

    As in language, the frequent ones are learned first and show the way to the others.
    """
    return rng.choices(_BY_FREQUENCY, cum_weights=_weigh(round(evenness, 2)), k=count)


@cache
def _weigh(evenness: float) -> tuple[float, ...]:
    return tuple(accumulate((rank + 10) ** (evenness - 1) for rank in range(len(WORDS))))
