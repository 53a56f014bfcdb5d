"""Distribution of entries: of A, of B, of full updates (figure 3c of the paper, https://arxiv.org/abs/2502.17159).

Tensors are counted one by one, however many there are; none is kept.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.delta import open_delta
from robustmerge.stage.settings import UserError

HALF = 64  # bins on each side of zero
SMALLEST = -148  # float32 holds nothing between zero and 2 ** (SMALLEST - 1)


class Histogram:
    """Counts of entries in bins of one width, a power of two, which doubles until the largest entry fits.

    >>> entries = Histogram()
    >>> entries.add(torch.tensor([-0.5, 0.25, 0.25]))
    >>> entries.add(torch.tensor([[100.0]]))
    >>> [(row["low"], row["count"]) for row in entries.rows() if row["count"]]
    [(-2.0, 1), (0.0, 2), (100.0, 1)]
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(2 * HALF, dtype=torch.int64)
        self._exponent = SMALLEST  # all entries are below 2 ** exponent

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 2.0**self._exponent / HALF

    def add(self, values: Tensor) -> None:
        """Count finite values of any shape."""
        flat = values.flatten().double()
        largest = float(flat.abs().max())
        exponent = max(self._exponent, math.frexp(largest)[1]) if largest else self._exponent
        for _ in range(exponent - self._exponent):
            pairs = self._counts.reshape(HALF, 2).sum(1)
            self._counts = torch.zeros_like(self._counts)
            self._counts[HALF // 2 : HALF // 2 + HALF] = pairs
        self._exponent = exponent
        places = (flat / self.width).floor().long() + HALF
        self._counts += torch.bincount(places, minlength=2 * HALF).cpu()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each bin, from the lowest with an entry to the highest. density: its share over its width."""
        occupied, total = self._counts.nonzero().flatten().tolist(), int(self._counts.sum())
        return [
            {
                "low": (place - HALF) * self.width,
                "high": (place + 1 - HALF) * self.width,
                "count": (count := int(self._counts[place])),
                "density": count / total / self.width,
            }
            for place in range(occupied[0], occupied[-1] + 1)
        ]


def count_full_update(folder: Path) -> Histogram:
    """Count the entries of a full update, a delta folder. Raises UserError if it is none, or an entry is not finite."""
    delta, entries = open_delta(folder), Histogram()
    for parameter, change, tensor in delta.changes():
        if change == "add":
            if not torch.isfinite(tensor.float()).all():
                raise UserError(f"{folder}: the update of {parameter} has entries that are not finite")
            entries.add(tensor.float())
    return entries
