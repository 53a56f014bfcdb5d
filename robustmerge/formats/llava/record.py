"""What conversions in both directions share: checks of values, the record of a conversion, the folder's card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from robustmerge.formats.adapter_config import CONFIG, WEIGHT_FILES
from robustmerge.formats.llava.checks import LoraIndex
from robustmerge.formats.llava.names import (
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    list_files,
    projector_name,
    read_optional_json,
)
from robustmerge.formats.tensors import Tensors, all_finite
from robustmerge.stage.files import sha256_of
from robustmerge.stage.settings import UserError, first_few

RECORD = "conversion.json"
WRITTEN = (RECORD, "README.md", CONFIG, *WEIGHT_FILES, PROJECTOR, LLAVA_CONFIG)
T = TypeVar("T")
_CARD = """\
---
{front}tags: [lora, llava]
---
# {title}

{text}

{layers} layers, rank {rank}, alpha {alpha}, {dtype}; {projector}. Made of:

{files}
"""


def raise_problems(location: Path, problems: list[str]) -> None:
    """Raise UserError with the first few problems, if any, each with the folder or file that has it."""
    if problems:
        raise UserError("\n".join(f"{location}: {problem}" for problem in first_few(problems)))


def with_location(location: Path, action: Callable[[], T]) -> T:
    """Return `action()`; a UserError of it gets the location before every line."""
    try:
        return action()
    except UserError as error:
        raise UserError("\n".join(f"{location}: {line}" for line in str(error).splitlines())) from error


def check_projector_shapes(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> list[str]:
    """Problems of the projector's shapes: its weights must be [hidden, width of the tower] and [hidden, hidden]."""
    tower = shapes["0.weight"][-1] if shapes["0.weight"] else 0
    expected = {"0.weight": (hidden, tower), "0.bias": (hidden,), "2.weight": (hidden, hidden), "2.bias": (hidden,)}
    return [
        f"{projector_name(part)} must have shape {list(expected[part])}, got {list(shapes[part])}"
        for part in PROJECTOR_NAMES
        if tuple(shapes[part]) != expected[part]
    ]


def check_values(file: Tensors, index: LoraIndex, every: bool = True) -> list[str]:
    """Problems of the values: LoRA tensors that are not finite, and lora_B that is zero.

    every: each lora_B that is zero is a problem; without, only if all of them are.
    """
    problems, zero = [], []
    for (_, _, part), name in index.names.items():
        x = file.get(name)
        if problem := describe_fault(x):
            problems.append(f"{name} {problem}")
        elif part == "B" and not x.any():
            zero.append(name)
    if zero and (every or len(zero) == len(index.names) // 2):
        problems += [f"{name} is zero everywhere: nothing was learned there, or it was never loaded" for name in zero]
    return problems


def check_projector(file: Tensors | None) -> list[str]:
    """Problems of the values in the projector's file."""
    faults = {} if file is None else {name: describe_fault(file.get(name)) for name in file.names}
    return [f"{PROJECTOR}: {name} {fault}" for name, fault in faults.items() if fault]


def describe_fault(x: Tensor) -> str | None:
    """Why a trained tensor cannot be used, or None."""
    if not x.is_floating_point():
        return f"holds {x.dtype}, not floating point numbers"
    return None if all_finite(x) else "holds numbers that are not finite"


def build_record(
    to: str,
    source: Path,
    index: LoraIndex,
    alpha: float,
    file: Tensors,
    projector: Iterable[Tensor],
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the record of a conversion: request, sizes, dtypes, sha256 of the source's files; no path and no time."""
    dtypes = {str(file.dtype(name)).removeprefix("torch.") for name in index.names.values()}
    tensors = list(projector)
    return {
        "to": to,
        "asked": dict(request),
        "layers": index.sizes["layers"],
        "rank": index.sizes["rank"],
        "alpha": alpha,
        "dtype": ", ".join(sorted(dtypes)),
        "modules": len(index.names) // 2,
        "projector_tensors": len(tensors),
        "projector_dtype": ", ".join(sorted({str(x.dtype).removeprefix("torch.") for x in tensors})) or None,
        "digests": hash_sources(source),
    }


def hash_sources(source: Path) -> dict[str, str]:
    """sha256 of the files of a folder that a conversion reads."""
    return {file.name: sha256_of(file) for file in list_files(source)}


def is_converted(source: Path, folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether the folder holds the complete conversion of `source` for this request.

    Raises UserError if it holds anything but this conversion, complete or interrupted; nothing is overwritten.
    """
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    record = read_optional_json(folder / RECORD)
    if record is not None and (record.get("asked") != request or record.get("digests") != hash_sources(source)):
        raise UserError(f"{folder} holds another conversion than is asked for; move it away, or choose another (out)")
    if foreign := [name for name in names if name not in WRITTEN and not name.startswith(".")]:
        raise UserError(f"{folder} holds {foreign[0]}, which no conversion writes; choose another (out)")
    if record is None and CONFIG in names:
        raise UserError(f"{folder} holds an adapter already, and no {RECORD}; choose another (out)")
    return record is not None and CONFIG in names


def refuse_source_as_folder(source: Path, folder: Path) -> None:
    """Raises UserError if the folder of a conversion is the source itself."""
    if folder.exists() and folder.resolve() == source.resolve():
        raise UserError(f"{folder} is the adapter itself; nothing is overwritten (out)")


def describe_conversion(
    record: Mapping[str, Any], front: str, text: str, configs: Mapping[str, dict]
) -> dict[str, str | bytes]:
    """The card, the record and the configs, by the names of their files; the last config makes the folder complete."""
    projector = f"projector: {record['projector_tensors']} tensors, {record['projector_dtype']}"
    card = _CARD.format(
        front=front,
        title="A LLaVA adapter",
        text=text,
        projector=projector if record["projector_tensors"] else "no projector of its own, that of the base is meant",
        files="\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in record["digests"].items()),
        **{key: record[key] for key in ("layers", "rank", "alpha", "dtype")},
    )
    return {
        "README.md": card,
        RECORD: json.dumps(record, indent=1, sort_keys=True) + "\n",
        **{name: json.dumps(config, indent=2, sort_keys=True) + "\n" for name, config in configs.items()},
    }
