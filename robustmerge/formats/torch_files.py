"""Files of `torch.save`, read as data: which tensors they hold, and where in the file their numbers lie.

The pickle in such a file is not unpickled. Its opcodes are walked, and only a mapping of names to dense tensors is
understood; whatever else they would build is refused by its name. So no code can run, and time and memory are linear
in the size of the file. Both formats are read: the zip, and the one before torch 1.6. Importing this does not load
torch. Source: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from robustmerge.stage.files import require_file
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

REMEDY = "load it where you trust it, and save its tensors again as .safetensors"
PICKLE = 32 * 2**20  # bytes of a pickle
OPCODES = 500_000  # of a pickle: those of 17,000 tensors
DIMENSIONS = 16  # of a tensor; torch allows 64
ARGUMENTS = 10  # of a function of torch that makes a tensor
LONGEST_GLOBAL = 300  # characters of the name of a class with its module
DAMAGED = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
)  # what reading a file can raise whose structure is wrong
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip
_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (of the device `meta`)",
}
_ZIP, _MAGIC, _PROTOCOL = b"PK\3\4", 0x1950A86A20F9469CFC6C, 1001
_LOCAL = struct.Struct("<4s22xHH")  # a file's header in a zip: signature ... lengths of its name and its extra field


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: its name in torch. strides: in numbers. start, size: its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    size: int


def index_tensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors in a file of `torch.save`, name -> place; no number is read.

    Raises UserError if it is damaged or compressed, or holds anything but dense tensors by name.
    """
    size = require_file(path, "a file of tensors").stat().st_size
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
            content, storages = (_read_zip if is_zip else _read_old)(file, size)
        return _locate(content, storages)
    except _Refusal as error:
        raise UserError(f"cannot read {path}: {error}; {REMEDY}") from error
    except DAMAGED as error:
        raise UserError(
            f"cannot read {path}: it is damaged, or no file of torch.save ({type(error).__name__}: {error})"
        ) from error


class _Refusal(Exception):
    """Something that is not read, in a file that may be whole."""


# --- the two formats ----------------------------------------------------------------------------------------------

_Storages = Mapping[str, tuple[int, int]]  # key of a storage -> byte at which it begins, bytes


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, _Storages]:
    places: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            kind = "encrypted" if entry.flag_bits & 1 else "compressed"
            raise _Refusal(f"its part {quote(entry.filename)} is {kind}, which torch.save does not do")
        if entry.filename in places:
            raise ValueError(f"it holds two parts called {quote(entry.filename)}")
        file.seek(entry.header_offset)
        signature, *lengths = _LOCAL.unpack(file.read(_LOCAL.size))
        start = entry.header_offset + _LOCAL.size + sum(lengths)
        if signature != _ZIP or entry.compress_size != entry.file_size or start + entry.file_size > size:
            raise ValueError(f"its part {quote(entry.filename)} is not whole")
        places[entry.filename] = start, entry.file_size
    if sum(length for _, length in places.values()) > size:
        raise ValueError("its parts lie over one another")
    roots = [name.removesuffix("data.pkl") for name in places if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refusal("it is a zip file, but not one of torch.save")
    (root,) = roots
    if f"{root}byteorder" in places and _read_part(file, *places[f"{root}byteorder"]) != b"little":
        raise _Refusal("it was written on a machine of another byte order")
    content = _read_pickle(io.BytesIO(_read_part(file, *places[f"{root}data.pkl"])), {})
    data = f"{root}data/"
    return content, {name.removeprefix(data): place for name, place in places.items() if name.startswith(data)}


def _read_part(file: BinaryIO, start: int, size: int) -> bytes:
    if size > PICKLE:
        raise _Refusal(f"its list of tensors takes {size} bytes, and at most {PICKLE} are read")
    file.seek(start)
    return file.read(size)


def _read_old(file: BinaryIO, size: int) -> tuple[Any, _Storages]:
    """Read the format before torch 1.6: five pickles, then the storages, each after its length in numbers.

    The pickles are a magic number, a version, the machine, the content, and the keys of the storages, in their order.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(PICKLE))
    magic, protocol, machine = (_read_pickle(stream, {}, 100) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("no magic number")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refusal("it was written on a machine of another byte order")
    used: dict[str, _Storage] = {}
    content, keys = _read_pickle(stream, used), _read_pickle(stream, {}, OPCODES // 5)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in used for key in keys):
        raise ValueError("its list of storages fits nothing")
    places, at = {}, stream.tell()
    for key in keys:
        file.seek(at)
        (count,) = struct.unpack("<q", file.read(8))
        length = count * _item_size(used[key].dtype, "a tensor")
        if count != used[key].count or at + 8 + length > size:
            raise ValueError("a storage is not whole")
        places[key] = at + 8, length
        at += 8 + length
    return content, places


# --- what the pickle describes ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Global:
    """A class or a function, by its name; it is never imported."""

    module: str
    name: str


@dataclass(slots=True)
class _Storage:
    """Numbers in the file. count: of numbers, or of bytes where torch does not say of what dtype they are (uint8)."""

    key: str
    dtype: str
    count: int


@dataclass(slots=True)
class _View:
    """A dense tensor: how many numbers of the storage lie before its first one, its shape and its strides."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _Foreign:
    """Anything else. what: what a message calls it."""

    what: str


_MARK, _NO_NAME = object(), object()
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3}  # values that are taken from the stack


def _read_pickle(stream: BinaryIO, storages: dict[str, _Storage], most: int = OPCODES) -> Any:
    """Build what a pickle describes of the types above, dict, list, tuple, str and numbers.

    storages: filled, by key. most: opcodes. Only texts are hashed or compared, and no value is walked twice, so that
    the time is linear in the length of the pickle.
    Raises one of DAMAGED if it makes no sense.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count == most:
            raise _Refusal(f"its list of tensors takes more than {most} steps")
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[_check_small(argument)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[_check_small(argument)])
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(_pop_marked(stack)))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(_pop(stack, _TUPLES[name])))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), storages))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX" as name:
                stack.append(_call(*_pop(stack, _CALLS[name])[:2]))
            case "NONE" | "NEWTRUE" | "NEWFALSE" as name:
                stack.append(_CONSTANTS[name])
            case "STOP":
                break
            case "PROTO" | "FRAME":
                pass
            case "POP":
                stack.pop()
            case "POP_MARK":
                _pop_marked(stack)
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(_pop_marked(stack))
            case "APPEND":
                _extend(stack, _pop(stack, 1))
            case "APPENDS":
                _extend(stack, _pop_marked(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = _pop_marked(stack)
                stack.append({})
                _set_items(stack, items)
            case "SETITEM":
                _set_items(stack, _pop(stack, 2))
            case "SETITEMS":
                _set_items(stack, _pop_marked(stack))
            case "EMPTY_SET":
                stack.append(_Foreign("a set"))
            case "ADDITEMS":
                _pop_marked(stack)
            case "BUILD":  # attributes, as the versions in a `state_dict`
                stack.pop()
                if not isinstance(stack[-1], (dict, _Foreign)):
                    stack[-1] = _Foreign("a value with a state")
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_global(*_pop(stack, 2)))
            case name:
                raise _Refusal(f"it holds more than tensors (opcode {name})")
    (content,) = stack
    return content


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise IndexError("the stack is empty")
    values = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return values


def _pop_marked(stack: list[Any]) -> list[Any]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _extend(stack: list[Any], values: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(values)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            stack[-1][key if isinstance(key, str) else _NO_NAME] = value


def _global(module: Any, name: Any) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LONGEST_GLOBAL:
        raise TypeError("no name of a class")
    return _Global(module, name)


def _check_small(number: int) -> int:
    if not 0 <= number < 2**32:
        raise IndexError("no place of a value")
    return number


def _storage(identity: Any, storages: dict[str, _Storage]) -> _Storage | _Foreign:
    """The storage that torch calls by ('storage', its class, key, device, count), or in the old format (..., None)."""
    if not isinstance(identity, tuple) or not isinstance(identity[0], str) or identity[0] != "storage":
        return _Foreign("part of a model that was saved whole")
    _, cls, key, _, count, view = identity if len(identity) == 6 else (*identity[:5], None)
    if not isinstance(cls, _Global) or not isinstance(key, str) or not _are_counts([count]) or view is not None:
        raise TypeError("no storage of torch")
    storage = _Storage(key, _STORAGES.get(cls.name, cls.name), count)
    if storages.setdefault(key, storage) != storage:
        raise ValueError("two tensors disagree on their storage")
    return storage


def _call(function: Any, arguments: Any) -> Any:
    """What the call would give: an empty mapping, a dense tensor, or a value that is refused by its name."""
    name = _name_of(function)
    if isinstance(function, _Foreign):
        return function
    if len(arguments) > ARGUMENTS:
        return _Foreign(f"made by {name}")
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
        function, cls, arguments = arguments[:3]
        if _name_of(cls) not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            return _Foreign(f"an object of {_name_of(cls)}")
        name = _name_of(function)
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        _, _, *marks = arguments[4:] if len(arguments) > 4 else (None, None)  # after requires_grad and hooks
        return _view(arguments[:4], arguments[0].dtype, marks)
    if name == "torch._utils._rebuild_tensor_v3":
        _, _, dtype, *marks = arguments[4:]
        return _view(arguments[:4], dtype.name, marks)
    return _Foreign(_KINDS.get(name, f"made by {name}"))


def _view(place: tuple[Any, ...], dtype: str, marks: list[Any]) -> _View | _Foreign:
    """Build a dense tensor. place: storage, offset, shape, strides. marks: set if numbers are computed on reading."""
    storage, offset, shape, strides = place
    if any(marks):
        return _Foreign("a negative or conjugate view of a tensor")
    is_short = isinstance(shape, tuple) and isinstance(strides, tuple) and len(strides) == len(shape) <= DIMENSIONS
    if not isinstance(storage, _Storage) or not is_short or not _are_counts([offset, *shape, *strides]):
        raise TypeError("no tensor of torch")
    return _View(storage, dtype, offset, shape, strides)


def _name_of(value: Any) -> str:
    return f"{value.module}.{value.name}" if isinstance(value, _Global) else "no function"


# --- from there to places in the file -----------------------------------------------------------------------------


def _locate(content: Any, storages: _Storages) -> dict[str, StoredTensor]:
    if not isinstance(content, dict):
        raise _Refusal(f"its content is {_describe(content)}, not tensors by name")
    tensors, problems = {}, []
    for name, value in content.items():
        if not isinstance(name, str):
            problems.append("a name is no text")
        elif not isinstance(value, _View):
            problems.append(f"{quote(name)} is {_describe(value)}")
        else:
            tensors[name] = _locate_view(value, storages, f"tensor {quote(name)}")
    if problems:
        raise _Refusal(
            "it holds more than dense tensors by name, and what could run code is not unpickled "
            f"({'; '.join(first_few(problems, 3))})"
        )
    return tensors


def _describe(value: Any) -> str:
    if isinstance(value, _View):
        return "a tensor"
    return value.what if isinstance(value, _Foreign) else f"of type {type(value).__name__.lstrip('_')}"


def _locate_view(view: _View, storages: _Storages, what: str) -> StoredTensor:
    item = _item_size(view.dtype, what)
    count, size = math.prod(view.shape), item * view.storage.count
    if view.dtype != view.storage.dtype:  # counted in bytes
        size = view.storage.count if view.storage.dtype == "uint8" else -1
    span = 1 + sum((length - 1) * stride for length, stride in zip(view.shape, view.strides, strict=True))
    span = span if count else 0
    start, length = storages.get(view.storage.key, (0, -1))
    if not 0 <= size <= length or (view.offset + span) * item > size:
        raise ValueError(f"{what} is not whole")
    if count * item > size:
        raise _Refusal(f"{what} has shape {list(view.shape)}, but only {size // item} numbers that it repeats")
    return StoredTensor(view.dtype, view.shape, view.strides, start + view.offset * item, span * item)


def _item_size(dtype: str, what: str) -> int:
    if dtype not in ITEM_SIZES:
        raise _Refusal(f"{what} is {dtype}; allowed: {', '.join(ITEM_SIZES)}")
    return ITEM_SIZES[dtype]


def _are_counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
