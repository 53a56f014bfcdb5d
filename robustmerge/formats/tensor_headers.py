"""What a file of tensors says that it holds: read without torch, and nothing is unpickled.

No more is read or inflated than a limit allows, whatever sizes the file claims.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from robustmerge.stage.files import parse_json, require_file
from robustmerge.stage.settings import UserError

LIMIT = 16 * 2**20  # bytes of a header or a pickle: those of 100,000 tensors
CONTAINERS = 300_000  # lists and objects in a header: those of 100,000 tensors
OPCODES = 500_000  # of a pickle: those of 20,000 tensors
_ZIP = b"PK\x03\x04"  # how torch tells an archive from the format before version 1.6
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others cannot be inflated bit by bit
_OLD_PICKLES = 4  # before torch 1.6: a magic number, the version, the system, the object


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a .safetensors file: tensor -> dtype, shape and place. Raises UserError if it is damaged."""
    size = require_file(path, "a file of tensors").stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LIMIT):
            raise UserError(f"{path} is no .safetensors file: its header would have {length} of {size} bytes")
        text = file.read(length)
        try:
            if text.count(b"[") + text.count(b"{") > CONTAINERS:
                raise ValueError(f"it has more than {CONTAINERS} lists and objects")
            header = parse_json(text.decode())
        except ValueError as error:
            raise UserError(f"{path} is no .safetensors file: its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is no .safetensors file: its header is a {type(header).__name__}, not an object")
    return header


def read_opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    """Read the pickle in a .bin file of torch opcode by opcode: the name of each, and its argument.

    Raises UserError if the file is damaged, or its pickle is larger than that of any adapter.
    """
    try:
        content, count = _read_pickles(require_file(path, "a file of tensors"))
        opcodes = chain.from_iterable(pickletools.genops(content) for _ in range(count))
        for number, (opcode, argument, _) in enumerate(opcodes):
            if number == OPCODES:
                raise ValueError(f"more than {OPCODES} opcodes")
            yield opcode.name, argument
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(f"{path} cannot be read: it is damaged, or more than tensors ({error})") from error


def _read_pickles(path: Path) -> tuple[IO[bytes], int]:
    """The bytes of the pickles in a .bin file, and how many there are."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            return io.BytesIO(file.read(LIMIT)), _OLD_PICKLES
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].compress_type not in _METHODS:
            raise ValueError(f"{len(pickles)} entries data.pkl that can be read")
        with archive.open(pickles[0]) as stream:
            content = stream.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise ValueError(f"a pickle of more than {LIMIT} bytes")
        return io.BytesIO(content), 1
