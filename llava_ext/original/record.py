"""What conversions in both directions share: checks of values, the record of what was done, the folder's card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from llava_ext.original.checks import Layout
from llava_ext.original.names import (
    ADAPTER_CONFIG,
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    WEIGHTS,
    list_files,
    projector_name,
    read_if_there,
)
from robustmerge.formats.tensors import TensorFile, all_finite
from robustmerge.stage.files import sha256_of, write_atomically
from robustmerge.stage.settings import UserError, first_few

RECORD = "conversion.json"
WRITTEN = (RECORD, "README.md", ADAPTER_CONFIG, *WEIGHTS, PROJECTOR, LLAVA_CONFIG)
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


def raise_problems(place: Path, problems: list[str]) -> None:
    """Raises UserError with the first few problems, each with the folder or file it was found in."""
    if problems:
        raise UserError("\n".join(f"{place}: {problem}" for problem in first_few(problems)))


def with_location(place: Path, action: Callable[[], T]) -> T:
    """What `action` returns; every line of its UserError says where."""
    try:
        return action()
    except UserError as error:
        raise UserError("\n".join(f"{place}: {line}" for line in str(error).splitlines())) from error


def check_projector_shapes(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> list[str]:
    """0: [hidden, of a picture], 2: [hidden, hidden]."""
    first = shapes["0.weight"][-1] if shapes["0.weight"] else 0
    wanted = {"0.weight": (hidden, first), "0.bias": (hidden,), "2.weight": (hidden, hidden), "2.bias": (hidden,)}
    return [
        f"{projector_name(part)} must have shape {list(wanted[part])}, got {list(shapes[part])}"
        for part in PROJECTOR_NAMES
        if tuple(shapes[part]) != wanted[part]
    ]


def check_values(file: TensorFile, layout: Layout, every: bool = True) -> list[str]:
    """LoRA tensors that are not finite, and lora_B that is zero: every one of them is a fault, or only all at once."""
    problems, zero = [], []
    for (_, _, part), name in layout.names.items():
        x = file.get(name)
        if not x.is_floating_point():
            problems.append(f"{name} holds {x.dtype}, not floating point numbers")
        elif not all_finite(x):
            problems.append(f"{name} holds numbers that are not finite")
        elif part == "B" and not x.any():
            zero.append(name)
    if zero and (every or len(zero) == len(layout.names) // 2):
        problems += [f"{name} is zero everywhere: nothing was learned there, or it was never loaded" for name in zero]
    return problems


def check_finite(file: TensorFile | None) -> list[str]:
    """The tensors of a file that hold NaN or infinity."""
    names = file.names if file is not None else []
    return [
        f"{PROJECTOR}: {name} holds numbers that are not finite" for name in names if not all_finite(file.get(name))
    ]


def build_record(
    to: str,
    source: Path,
    layout: Layout,
    alpha: float,
    file: TensorFile,
    projector: Iterable[Tensor],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """What was converted: sizes, dtypes, what was asked for, sha256 of the files it was made of. No path, no time."""
    dtypes = {str(file.dtype(name)).removeprefix("torch.") for name in layout.names.values()}
    saved = list(projector)
    return {
        "to": to,
        "asked": dict(asked),
        "layers": layout.sizes["layers"],
        "rank": layout.sizes["rank"],
        "alpha": alpha,
        "dtype": ", ".join(sorted(dtypes)),
        "modules": len(layout.names) // 2,
        "projector_tensors": len(saved),
        "projector_dtype": ", ".join(sorted({str(x.dtype).removeprefix("torch.") for x in saved})) or None,
        "digests": hash_sources(source),
    }


def hash_sources(source: Path) -> dict[str, str]:
    """sha256 of the files that a conversion of this folder reads."""
    return {file.name: sha256_of(file) for file in list_files(source)}


def is_converted(source: Path, folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the folder holds the conversion of `source` that was asked for, whole.

    Raises UserError if it holds anything else than one that was begun; nothing is overwritten.
    """
    found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    record = read_if_there(folder / RECORD)
    if record is not None and (record.get("asked") != asked or record.get("digests") != hash_sources(source)):
        raise UserError(f"{folder} holds another conversion than is asked for; move it away, or choose another out=")
    if foreign := [name for name in found if name not in WRITTEN and not name.startswith(".")]:
        raise UserError(f"{folder} holds {foreign[0]}, which no conversion writes; choose another out=")
    if record is None and ADAPTER_CONFIG in found:
        raise UserError(f"{folder} holds an adapter already, and no {RECORD}; choose another out=")
    return record is not None and ADAPTER_CONFIG in found


def start(source: Path, folder: Path) -> None:
    """Make the folder. Raises UserError if it is the source itself."""
    if folder.exists() and folder.resolve() == source.resolve():
        raise UserError(f"{folder} is the adapter itself; nothing is overwritten (out)")
    folder.mkdir(parents=True, exist_ok=True)


def finish(folder: Path, record: Mapping[str, Any], front: str, text: str, configs: Mapping[str, dict]) -> None:
    """Write card, record and configs in this order, the configs sorted as they are given: the last makes it whole."""
    saved = f"projector: {record['projector_tensors']} tensors, {record['projector_dtype']}"
    card = _CARD.format(
        front=front,
        title="A LLaVA adapter",
        text=text,
        projector=saved if record["projector_tensors"] else "no projector of its own, that of the base is meant",
        files="\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in record["digests"].items()),
        **{key: record[key] for key in ("layers", "rank", "alpha", "dtype")},
    )
    write_atomically(folder / "README.md", card)
    write_atomically(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    for name, config in configs.items():
        write_atomically(folder / name, json.dumps(config, indent=2, sort_keys=True) + "\n")
