"""Writing a .safetensors file whose names, dtypes and shapes are known beforehand: its tensors come in any order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustmerge.tensor_files import CODES
from robustmerge.whole_files import WholeFile

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


class SlotWriter(WholeFile):
    """Writes every tensor straight to its place, so that no byte is written twice and one tensor is in memory.

    The file appears under its name when the block ends well.
    """

    def __init__(self, path: Path, layout: Layout):
        super().__init__(path, alone=True)
        self._header, self._slots = _lay_out(layout)
        self.missing = set(layout)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, which must have the dtype and shape that were announced, once."""
        start, stop = self._slots[name]
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        if name not in self.missing or data.nbytes != stop - start:
            raise ValueError(f"{name} does not fit its slot, or is there already")
        self.file.seek(start)
        self.file.write(data.data)
        self.missing.remove(name)

    def finish(self) -> None:
        """Write the header and bring all bytes to the disk. Raises ValueError if a tensor is missing."""
        if self.missing:
            raise ValueError(f"{self.path} lacks {len(self.missing)} tensors, as {min(self.missing)}")
        self.file.seek(0)
        self.file.write(self._header)
        super().finish()


def _lay_out(layout: Layout) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of the file, and where in the file each tensor begins and ends."""
    described: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        described[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    slots = {name: [len(header) + at for at in described[name]["data_offsets"]] for name in layout}
    return header, {name: (start, stop) for name, (start, stop) in slots.items()}
