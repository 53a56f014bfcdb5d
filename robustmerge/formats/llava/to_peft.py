"""Conversion of adapters from LLaVA's own format to PEFT; every tensor keeps its numbers and its dtype.

The result is an adapter of transformers' LLaVA, the trained projector in it as `modules_to_save`, its targets a regular
expression that no module of the vision tower matches. Unknown tensors are refused, as a tensor that is not loaded makes
a wrong model without an error. The last file written makes the folder complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustmerge.formats.adapter_config import CONFIG, WEIGHTS, find_weights, read_config
from robustmerge.formats.llava.checks import LoraIndex, check_adapter_config, check_llava_config, index_lora
from robustmerge.formats.llava.configs import LLAVA15, SAVED, peft_adapter_config
from robustmerge.formats.llava.names import (
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    LoraKey,
    is_original,
    lora_name,
    parse_lora_names,
    projector_name,
    projector_part,
    read_optional_json,
)
from robustmerge.formats.llava.old_peft import convert_old_names, has_old_names
from robustmerge.formats.llava.record import (
    build_record,
    check_projector,
    check_projector_shapes,
    check_values,
    describe_conversion,
    raise_problems,
    refuse_source_as_folder,
    with_location,
)
from robustmerge.formats.names import PREFIX
from robustmerge.formats.tensors import TensorFile, TensorWriter, header_room
from robustmerge.stage.files import FolderWriter
from robustmerge.stage.settings import UserError, first_few


def convert_to_peft(original: Path, folder: Path, base: str, allow_no_projector: bool = False) -> dict[str, Any]:
    """Write an adapter in LLaVA's own format as a PEFT adapter; returns the record of it (`conversion.json`).

    A PEFT adapter with names from before transformers 4.52 gets current ones (`robustmerge.formats.llava.old_peft`).
    base: the new `base_model_name_or_path`, a checkpoint of transformers' LLaVA; "": the one of the adapter's size.
    allow_no_projector: accept an adapter without a projector, which then uses that of the base.
    Raises UserError, with nothing written that could be loaded, for all that is not exactly LoRA of every linear of
    the language model beside a projector; for a lora_B that is zero, or numbers that are not finite.
    """
    if not is_original(original) and has_old_names(original):
        return convert_old_names(original, folder, base, peft_request(base))
    config, index, lora = _open_lora(original)
    _check_base(original, index, base)
    sources = {_peft_name(key): (lora, name) for key, name in index.names.items()}
    projector = _open_projector(original, index.sizes, allow_no_projector)
    raise_problems(original, [*check_values(lora, index), *check_projector(projector)])
    tensors = []
    if projector is not None:
        for part, name in _index_projector(projector).items():
            sources[f"{PREFIX}model.{SAVED}.{PROJECTOR_NAMES[part]}"] = (projector, name)
            tensors.append(projector.get(name))
    record = build_record("peft", original, index, config["lora_alpha"], lora, tensors, peft_request(base))
    base = base or _default_base(index) or ""
    record |= {"base": base, "adapter_config": config, "config": read_optional_json(original / LLAVA_CONFIG)}
    text = "Converted from LLaVA's own format, tensor by tensor, without any change of the numbers."
    configs = {CONFIG: peft_adapter_config(config, base, projector is not None)}
    refuse_source_as_folder(original, folder)
    writer = TensorWriter(folder / WEIGHTS, header_room(sources))
    with FolderWriter(folder, [writer], describe_conversion(record, "library_name: peft\n", text, configs)):
        for name, (file, stored) in sorted(sources.items()):
            writer.add(name, file.get(stored))
    return record


def peft_request(base: str) -> dict[str, Any]:
    """The settings that determine a conversion to PEFT, apart from the adapter."""
    return {"to": "peft", "base": base}


def _default_base(index: LoraIndex) -> str | None:
    """The checkpoint of LLaVA-1.5 of the adapter's size, if there is one."""
    size = LLAVA15.get((index.sizes["layers"], index.sizes["hidden"]))
    return size.checkpoint if size else None


def _check_base(original: Path, index: LoraIndex, base: str) -> None:
    """Raises UserError if the base is a published LLaVA-1.5 of another size than the adapter."""
    expected = _default_base(index)
    if expected not in (None, base) and base in {size.checkpoint for size in LLAVA15.values()}:
        raise UserError(f"{original} is an adapter of the size of {expected}, and the base is {base}")


def _open_lora(original: Path) -> tuple[dict[str, Any], LoraIndex, TensorFile]:
    """The adapter's config, its LoRA tensors and their file. Raises UserError for any that the format does not have."""
    weights, config = find_weights(original), read_optional_json(original / CONFIG)
    if weights is None or config is None:
        files = ", ".join(sorted(file.name for file in original.iterdir())) if original.is_dir() else "no such folder"
        raise UserError(
            f"{original} is no adapter in LLaVA's own format: it needs {CONFIG} and adapter_model.bin or "
            f"{WEIGHTS}, found: {files or 'nothing'}"
        )
    raise_problems(original / CONFIG, check_adapter_config(read_config(original, original.name)))
    file = TensorFile(weights)
    if not is_original(original):
        raise UserError(
            f"{original} is no adapter in LLaVA's own format, whose tensors are called as "
            f"'{lora_name((0, 'self_attn.q_proj', 'A'))}' and which has {PROJECTOR} or LLaVA's {LLAVA_CONFIG} beside "
            f"them; found '{next(iter(file.names), '')}'. One in PEFT's format is merged as it is"
        )
    shapes = {name: file.shape(name) for name in file.names}
    index = with_location(weights, lambda: index_lora(parse_lora_names(file.names), shapes, int(config["r"])))
    llava = read_optional_json(original / LLAVA_CONFIG)
    raise_problems(original / LLAVA_CONFIG, check_llava_config(llava or {}, index.sizes))
    return config, index, file


def _open_projector(original: Path, sizes: Mapping[str, int], allow_none: bool) -> TensorFile | None:
    """The file with the four tensors of the projector; None if there is none and `allow_none`."""
    path = original / PROJECTOR
    file = TensorFile(path) if os.path.lexists(path) else None
    if file is None or not file.names:
        if allow_none:
            return None
        raise UserError(
            f"{path} {'is missing' if file is None else 'is empty'}: without it the projector of the base is taken, "
            "which is another model than was trained; if that is meant, say allow_no_projector=true"
        )
    parts = with_location(path, lambda: _index_projector(file))
    problems = check_projector_shapes({part: file.shape(name) for part, name in parts.items()}, sizes["hidden"])
    if not problems:
        llava = read_optional_json(original / LLAVA_CONFIG) or {}
        problems = check_llava_config(llava, {"picture": file.shape(parts["0.weight"])[1]})
    raise_problems(path, problems)
    return file


def _index_projector(file: TensorFile) -> dict[str, str]:
    """The names of the projector's tensors by part of PROJECTOR_NAMES.

    Raises UserError for tensors that are none of these, that are missing or that occur twice.
    """
    parts: dict[str, str] = {}
    problems = []
    for name in file.names:
        part = projector_part(name)
        if part not in PROJECTOR_NAMES:
            allowed = ", ".join(map(projector_name, PROJECTOR_NAMES))
            problems.append(f"{name} is no tensor of the projector; allowed: {allowed}")
        elif part in parts:
            problems.append(f"{parts[part]} and {name} are two spellings of one tensor")
        else:
            parts[part] = name
    problems += [f"{projector_name(part)} is missing" for part in PROJECTOR_NAMES if part not in parts]
    if problems:
        raise UserError("\n".join(first_few(problems)))
    return parts


def _peft_name(key: LoraKey) -> str:
    return f"{PREFIX}model.language_model.layers.{key[0]}.{key[1]}.lora_{key[2]}.weight"
