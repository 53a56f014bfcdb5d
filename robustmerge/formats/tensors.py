"""Files of named tensors: read from a memory-mapped file and written as safetensors, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustmerge.stage.files import WholeFile
from robustmerge.stage.settings import UserError

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ENTRY = 160  # bytes that a tensor's dtype, shape and place take in a header, and more
_DTYPES = {code: dtype for dtype, code in CODES.items()}

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


class TensorFile:
    """The tensors of one .safetensors or .bin file, by name.

    Raises UserError if the file is damaged, or a .bin that holds anything but tensors (it is never unpickled).
    """

    def __init__(self, path: Path):
        self.path = path
        self._mapped, self._loaded = None, {}
        if path.suffix == ".safetensors":
            try:
                self._mapped = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"cannot read {path}: {error}") from error
            self.names = sorted(self._mapped.keys())
        else:
            self._loaded = _load_bin(path)
            self.names = sorted(self._loaded)

    def get(self, name: str) -> Tensor:
        return self._mapped.get_tensor(name) if self._mapped is not None else self._loaded[name]

    def shape(self, name: str) -> tuple[int, ...]:
        if self._mapped is not None:
            return tuple(self._mapped.get_slice(name).get_shape())
        return tuple(self._loaded[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        if self._mapped is None:
            return self._loaded[name].dtype
        code = self._mapped.get_slice(name).get_dtype()
        return _DTYPES[code] if code in _DTYPES else self.get(name).dtype


def _load_bin(path: Path) -> dict[str, Tensor]:
    try:
        tensors = _unpickle_tensors(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"cannot read {path}: it is damaged, or it holds more than tensors, and what could run code is not "
            f"unpickled ({type(error).__name__}); save it as .safetensors where you trust it"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in tensors.items()
    ):
        raise UserError(f"cannot read {path}: it is not a mapping of names to tensors")
    return tensors


def _unpickle_tensors(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass without a copy."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return all(math.isfinite(bound) for bound in torch.aminmax(tensor))


def refuse_overflow(tensor: Tensor, what: str) -> None:
    """Raises UserError if the merged values of `what`, already in the dtype they are written in, do not fit it."""
    if not all_finite(tensor):
        remedy = "take a smaller strength" if tensor.dtype == torch.float32 else "take merge.out.dtype=float32"
        raise UserError(f"{what}: the merged values do not fit {tensor.dtype}; {remedy}")


def header_room(names: Iterable[str]) -> int:
    """Bytes that suffice for the header of a file with tensors of these names, whatever their shapes."""
    return sum(len(name) + ENTRY for name in names) + ENTRY


class TensorWriter(WholeFile):
    """Writes a .safetensors file tensor by tensor, with one tensor in memory at a time and every byte written once.

    room: bytes kept for the header, known only at the end (`header_room`); the rest of it is filled with spaces.
    The bytes depend on the tensors, their order and the room only. The file appears under its name when the block
    ends well.
    """

    def __init__(self, path: Path, room: int):
        super().__init__(path, alone=True)
        self._room = room + -room % 8
        self._header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self._written = 0

    def __enter__(self) -> Self:
        super().__enter__()
        self.file.seek(8 + self._room)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().contiguous()
        data = tensor.flatten().view(torch.uint8).numpy()
        self.file.write(data.data)
        self._header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._written, self._written + data.nbytes],
        }
        self._written += data.nbytes

    def finish(self) -> None:
        """Write the header and bring all bytes to the disk. Raises ValueError if there is no room for it."""
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"{self.path}: a header of {len(header)} bytes, room for {self._room}")
        self.file.seek(0)
        self.file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        super().finish()


class SlotWriter(WholeFile):
    """Writes a .safetensors file of announced tensors in any order, each straight to its place.

    The file appears under its name when the block ends well.
    """

    def __init__(self, path: Path, layout: Layout):
        super().__init__(path, alone=True)
        self._header, self._slots = _lay_out(layout)
        self.size = max((stop for _, stop in self._slots.values()), default=len(self._header))  # bytes
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
    """Lay out a file: its header, and where each tensor begins and ends."""
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
