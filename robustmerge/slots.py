"""A .safetensors file whose names, dtypes and shapes are known beforehand: its tensors are put in any order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from robustmerge.runs import BESIDE
from robustmerge.tensor_files import CODES

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


class SlotWriter:
    """Writes every tensor straight to its place, so that no byte is written twice and one tensor is in memory.

    Nothing is there before the block has ended well. `finish` and `publish` by hand are for several files that are
    to appear together.
    """

    def __init__(self, path: Path, layout: Layout):
        self.path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}{BESIDE}")
        self._header, self._slots = _lay_out(layout)
        self.missing = set(layout)

    def __enter__(self) -> SlotWriter:
        for left in self.path.parent.glob(f".{self.path.name}.*{BESIDE}"):  # by a run that was killed
            left.unlink()
        self._file = open(self._beside, "wb")  # noqa: SIM115  (closed in finish or drop)
        self._file.write(self._header)
        self._file.truncate(max([len(self._header), *(stop for _, stop in self._slots.values())]))
        return self

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, which must have the dtype and shape that were announced, once."""
        start, stop = self._slots[name]
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        if name not in self.missing or data.nbytes != stop - start:
            raise ValueError(f"{name} does not fit its slot, or is there already")
        self._file.seek(start)
        self._file.write(data.data)
        self.missing.remove(name)

    def finish(self) -> None:
        """Bring all bytes to the disk. Raises ValueError if a tensor is missing."""
        if self.missing:
            raise ValueError(f"{self.path} lacks {len(self.missing)} tensors, as {min(self.missing)}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Give the finished file its name."""
        os.replace(self._beside, self.path)

    def drop(self) -> None:
        """Leave nothing of an unpublished file."""
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self.publish()
        finally:
            self.drop()


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
