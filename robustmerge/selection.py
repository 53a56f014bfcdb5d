"""The k-th smallest of numbers that arrive in pieces, exactly, without holding them.

The bits of a float32 order like the number itself. A first pass counts the numbers by their upper 19 bits, a second
one counts the lower 13 bits of those that share the upper bits of an answer. Numbers that came from half precision
have no lower bits, so they need one pass; so do numbers that are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

LOWER = 13
LOWER_MASK = (1 << LOWER) - 1
OFFSET = 1 << (31 - LOWER)  # upper bits of negative numbers are negative
BATCH = 1 << 20  # numbers counted at once: a count has a bin for each upper value, so small pieces are gathered; a
# stream that ends before there are so many is held and never counted


def kth_smallest(x: Tensor, k: int) -> float:
    """The k-th smallest (from 1) of float32 numbers that are not negative and are all there; x is put out of order.

    Partitioning their bits as integers is the fastest exact way on a CPU.
    """
    bits = x.view(-1).numpy().view(np.int32)
    bits.partition(k - 1)
    return float(bits[k - 1 : k].view(np.float32)[0])


class Selector:
    """Order statistics of a stream that is given once or twice, as `is_done` says.

    ranks: from how many numbers there were to the k of each answer, from 1.

    >>> selector = Selector(lambda n: [1, n])
    >>> while not selector.is_done:
    ...     selector.add(torch.tensor([0.3, -2.0]))
    ...     selector.add(torch.tensor([[7.0], [1.0]]))
    ...     selector.end_pass()
    >>> selector.values
    [-2.0, 7.0]
    """

    def __init__(self, ranks: Callable[[int], Sequence[int]]):
        self.n = 0
        self.values: list[float] | None = None
        self._ranks = ranks
        self._upper: Tensor | None = None  # counts by upper bits
        self._lower: dict[int, Tensor] = {}  # upper bits -> counts by lower bits
        self._within: list[tuple[int, int]] = []  # of each answer: its upper bits, its rank among those
        self._has_lower = False
        self._waiting: list[Tensor] = []
        self._lock = Lock()

    @property
    def is_done(self) -> bool:
        return self.values is not None

    def add(self, x: Tensor) -> None:
        """Take the numbers of x, float32 of any shape; several threads may give some at once."""
        bits = _ordered_bits(x.reshape(-1))
        with self._lock:
            self._waiting.append(bits)
            if sum(piece.numel() for piece in self._waiting) >= BATCH:
                self._count()

    def _count(self) -> None:
        if self.is_done or not self._waiting:
            return
        bits = torch.cat(self._waiting)
        self._waiting = []
        if self._within:
            for upper, counts in self._lower.items():
                counts += torch.bincount(bits[bits >> LOWER == upper] & LOWER_MASK, minlength=LOWER_MASK + 1)
            return
        self.n += bits.numel()
        counts = torch.bincount((bits >> LOWER) + OFFSET, minlength=2 * OFFSET)
        self._upper = counts if self._upper is None else self._upper.add_(counts)
        self._has_lower = self._has_lower or bool(np.bitwise_or.reduce(bits.numpy()) & LOWER_MASK)

    def end_pass(self) -> None:
        """Say that every number has been given."""
        if self.is_done:
            return
        if self._upper is None:
            self.values = self._select_held()
            return
        self._count()
        if not self._within:
            self._within = [_locate(self._upper, k) for k in self._ranks(self.n)]
            self._within = [(upper - OFFSET, k) for upper, k in self._within]
            if self._has_lower:
                self._lower = {upper: torch.zeros(LOWER_MASK + 1, dtype=torch.int64) for upper, _ in self._within}
                return
        lower = [_locate(self._lower[upper], k)[0] if self._lower else 0 for upper, k in self._within]
        self.values = [_number((upper << LOWER) | low) for (upper, _), low in zip(self._within, lower, strict=True)]

    def _select_held(self) -> list[float]:
        bits = torch.cat(self._waiting).numpy()
        self._waiting = []
        self.n = len(bits)
        places = [k - 1 for k in self._ranks(self.n)]
        return [_number(int(bit)) for bit in np.partition(bits, places)[places]]


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """(the bin that holds the k-th number, its rank within the bin)."""
    total = counts.cumsum(0)
    position = int(torch.searchsorted(total, k))
    return position, k - (int(total[position - 1]) if position else 0)


def _ordered_bits(x: Tensor) -> Tensor:
    """Integers that order like the float32 numbers; both zeros are 0."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _number(bits: int) -> float:
    """The inverse of `_ordered_bits`."""
    magnitude = float(np.array([abs(bits)], dtype=np.int32).view(np.float32)[0])
    return -magnitude if bits < 0 else magnitude
