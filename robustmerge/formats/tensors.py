"""Files of named tensors: read from a memory-mapped file and written as safetensors, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustmerge.formats.torch_files import StoredTensor, index_tensors
from robustmerge.stage.files import WholeFile, require_file
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ENTRY = 160  # bytes that a tensor's dtype, shape and place take in a header, and more
NAME = 500  # characters of a tensor's name
MOST = 2**40  # numbers of a tensor
REPEATED = 16  # times that the numbers of a file may be read, as tied weights are
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
          "F8_E5M2FNUZ": "float8_e5m2fnuz"}  # fmt: skip
_DTYPES = {code: str(dtype).removeprefix("torch.") for dtype, code in CODES.items()} | FLOAT8
_READ = {str(dtype).removeprefix("torch."): dtype for dtype in CODES} | dict.fromkeys(FLOAT8.values(), torch.float32)

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]
Header = tuple[dict[str, str], dict[str, tuple[int, ...]]]  # dtypes and shapes, by the names of the tensors


class Tensors(Protocol):
    """Named tensors that are read on demand, of a file or in memory. path: what messages call their place."""

    path: Path
    names: list[str]

    def get(self, name: str) -> Tensor: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...


class TensorsInMemory:
    """Named tensors of a running model, on any device; `get` gives them on the CPU, as a file would."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self.path, self._tensors = path, tensors
        self.names = sorted(tensors)

    def get(self, name: str) -> Tensor:
        """Read one tensor; often the model's own memory, which must not be written to."""
        return self._tensors[name].detach().cpu()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype


class TensorFile:
    """The tensors of one .safetensors or .bin file, by name; their numbers are read on demand.

    float8: the names of those that are stored in a float8, which are read as float32; no sum of float8 is defined.
    Raises UserError if the file is damaged, a .bin holds anything but dense tensors (it is never unpickled), a dtype
    is not among CODES and FLOAT8, or a name or a shape is implausible.
    """

    def __init__(self, path: Path):
        self.path = require_file(path, "a file of tensors")
        self._stored: dict[str, StoredTensor] = {}
        if path.suffix == ".safetensors":
            dtypes, self._shapes = self._open_safetensors()
        else:
            dtypes, self._shapes = self._open_bin()
        self.names = sorted(self._shapes)
        _check_contents(path, dtypes, self._shapes)
        self._dtypes = {name: _READ[dtype] for name, dtype in dtypes.items()}
        self.float8 = [name for name in self.names if dtypes[name] in FLOAT8.values()]

    def _open_safetensors(self) -> Header:
        try:
            self._file = safe_open(self.path, framework="pt")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {self.path}: {error}") from error
        codes = {name: part.get_dtype() for name, part in slices.items()}
        dtypes = {name: _DTYPES.get(code, code) for name, code in codes.items()}
        return dtypes, {name: tuple(part.get_shape()) for name, part in slices.items()}

    def _open_bin(self) -> Header:
        self._stored = index_tensors(self.path)
        self._bytes = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)  # mapped
        dtypes = {name: tensor.dtype for name, tensor in self._stored.items()}
        return dtypes, {name: tensor.shape for name, tensor in self._stored.items()}

    def get(self, name: str) -> Tensor:
        """Read one tensor; a view of the file's memory, which must not be written to, but for float8."""
        tensor = self._view(name) if name in self._stored else self._file.get_tensor(name)
        return tensor.to(self._dtypes[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `get` gives."""
        return self._dtypes[name]

    def _view(self, name: str) -> Tensor:
        stored = self._stored[name]
        empty = torch.empty(0, dtype=getattr(torch, stored.dtype))
        numbers = self._bytes[stored.start : stored.start + stored.size]
        if stored.start % empty.itemsize:  # in the format before torch 1.6
            numbers = numbers.clone()
        return empty.set_(numbers, 0, stored.shape, stored.strides)


def _check_contents(path: Path, dtypes: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    for name, shape in shapes.items():
        if len(name) > NAME or not name.isprintable():
            problems.append(f"{quote(name)} is no name of a tensor: at most {NAME} printable characters")
        if dtypes[name] not in _READ:
            problems.append(f"tensor {quote(name)} is {dtypes[name]}; allowed: {', '.join(_READ)}")
        if math.prod(length or 1 for length in shape) > MOST:
            problems.append(f"tensor {quote(name)} has the implausible shape {quote(list(shape))}")
    if problems:
        raise UserError("\n".join(f"cannot read {path}: {problem}" for problem in first_few(problems)))
    size = sum(math.prod(shape) * _READ[dtypes[name]].itemsize for name, shape in shapes.items())
    if size > REPEATED * path.stat().st_size:
        raise UserError(f"cannot read {path}: its tensors share their numbers, and would take {size} bytes apart")


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass without a copy."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return all(math.isfinite(bound) for bound in torch.aminmax(tensor))


def refuse_overflow(tensor: Tensor, what: str, wider: str = "merge.out.dtype=float32") -> None:
    """Raises UserError if the merged values of `what`, already in the dtype they are written in, do not fit it.

    wider: the setting of a dtype that holds them.
    """
    if not all_finite(tensor):
        remedy = "take a smaller strength" if tensor.dtype == torch.float32 else f"take {wider}"
        raise UserError(f"{what}: the merged values do not fit {tensor.dtype}; {remedy}")


def header_room(names: Iterable[str]) -> int:
    """Bytes that suffice for the header of a file with tensors of these names, whatever their shapes."""
    return sum(len(json.dumps(name)) - 2 + ENTRY for name in names) + ENTRY


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
