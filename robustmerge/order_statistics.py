"""Order statistics: the exact k-th smallest of numbers that arrive in pieces, without holding them.

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
ROW = 1 << (23 - LOWER)  # upper values of one sign and exponent, whose counts are kept side by side
BATCH = 1 << 20  # numbers counted at once, since many at a time are faster; fewer than that are held and never counted
WAITING = 1 << 23  # numbers that all streams together hold until they are counted, 4 bytes each


def kth_smallest(x: Tensor, k: int) -> float:
    """The k-th smallest (k from 1) of non-negative float32 numbers; reorders x if it is on the CPU.

    Partitioning their bits as integers is the fastest exact way on a CPU.
    """
    bits = x.view(-1).cpu().numpy().view(np.int32)
    bits.partition(k - 1)
    return float(bits[k - 1 : k].view(np.float32)[0])


def batch_size_for(streams: int) -> int:
    """The number of values that each of several parallel streams may hold."""
    return max(1, min(BATCH, WAITING // streams))


class Selector:
    """Selects order statistics of a stream, which is passed through once or twice, until `is_done`.

    ranks: maps the count of numbers to the k of each answer, from 1. batch: how many numbers are counted at once.
    If there are no numbers, there are no values.
    Numbers are counted on the device where they are; the counts are kept on the CPU.
    Only the exponents that occur have counts, 8 kB each: magnitudes need some 0.3 MB, scores from 1 to e^-50 1.5 MB.

    >>> selector = Selector(lambda n: [1, n])
    >>> while not selector.is_done:
    ...     selector.add(torch.tensor([0.3, -2.0]))
    ...     selector.add(torch.tensor([[7.0], [1.0]]))
    ...     selector.end_pass()
    >>> selector.values
    [-2.0, 7.0]
    """

    def __init__(self, ranks: Callable[[int], Sequence[int]], batch: int = BATCH):
        self.n = 0
        self.values: list[float] = []
        self.is_done = False
        self._ranks = ranks
        self._batch = batch
        self._rows: dict[int, int] = {}  # sign and exponent -> its row in the counts
        self._upper = torch.zeros(0, ROW, dtype=torch.int64)  # counts by upper bits
        self._lower: dict[int, Tensor] = {}  # upper bits -> counts by lower bits
        self._within: list[tuple[int, int]] = []  # of each answer: its upper bits, its rank among those
        self._has_lower = False
        self._waiting: list[Tensor] = []
        self._lock = Lock()

    def add(self, x: Tensor) -> None:
        """Add the numbers of x, float32 of any shape; several threads may add at once."""
        if not x.numel():
            return
        bits = _ordered_bits(x.reshape(-1))
        with self._lock:
            self._waiting.append(bits)
            if sum(piece.numel() for piece in self._waiting) >= self._batch:
                self._count()

    def _count(self) -> None:
        if self.is_done or not self._waiting:
            return
        bits = torch.cat(self._waiting)
        self._waiting = []
        if self._within:
            for upper, counts in self._lower.items():
                lower = bits[bits >> LOWER == upper] & LOWER_MASK
                counts += torch.bincount(lower, minlength=LOWER_MASK + 1).cpu()
            return
        self.n += bits.numel()
        self._has_lower = self._has_lower or bool(np.bitwise_or.reduce(bits.cpu().numpy()) & LOWER_MASK)
        upper = bits >> LOWER
        first, last = (int(x) // ROW for x in upper.aminmax())
        counts = torch.bincount(upper.sub_(first * ROW), minlength=(last - first + 1) * ROW).view(-1, ROW)
        occupied = counts.any(1).nonzero().flatten()
        rows = [self._rows.setdefault(first + row, len(self._rows)) for row in occupied.tolist()]
        new = torch.zeros(len(self._rows) - len(self._upper), ROW, dtype=torch.int64)
        self._upper = torch.cat([self._upper, new]) if len(new) else self._upper
        self._upper.index_add_(0, torch.tensor(rows), counts[occupied].cpu())

    def end_pass(self) -> None:
        """End a pass: every number has been added."""
        if self.is_done:
            return
        if not self.n:  # nothing was counted
            self.values, self.is_done = self._select_held() if self._waiting else [], True
            return
        self._count()
        if not self._within:
            self._within = self._locate_upper()
            if self._has_lower:
                self._lower = {upper: torch.zeros(LOWER_MASK + 1, dtype=torch.int64) for upper, _ in self._within}
                return
        lower = [_locate(self._lower[upper], k)[0] if self._lower else 0 for upper, k in self._within]
        self.values = [_number((upper << LOWER) | low) for (upper, _), low in zip(self._within, lower, strict=True)]
        self.is_done = True

    def _locate_upper(self) -> list[tuple[int, int]]:
        """Locate each answer: its upper bits, and its rank among the numbers that share them."""
        rows = sorted(self._rows)
        counts = self._upper[[self._rows[row] for row in rows]].flatten()
        self._upper = self._upper[:0].clone()  # not needed in a second pass
        places = [_locate(counts, k) for k in self._ranks(self.n)]
        return [(rows[place // ROW] * ROW + place % ROW, k) for place, k in places]

    def _select_held(self) -> list[float]:
        bits = torch.cat(self._waiting).cpu().numpy()
        self._waiting = []
        self.n = len(bits)
        places = [k - 1 for k in self._ranks(self.n)]
        return [_number(int(bit)) for bit in np.partition(bits, places)[places]]


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """Locate the k-th number in a histogram: (its bin, its rank within the bin)."""
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
