"""Conversion of PEFT adapters, experts or merged ones, to LLaVA's own format, for its own scripts."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.adapter import Adapter, move_names, open_adapter
from robustmerge.formats.adapter_config import CONFIG, DELTA_CONFIG, LINE
from robustmerge.formats.llava.checks import LoraIndex, check_llava_config, index_lora
from robustmerge.formats.llava.configs import LLAVA15, SAVED, TOWER, build_llava_config, original_adapter_config
from robustmerge.formats.llava.names import (
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    LoraKey,
    is_llava_config,
    is_original,
    lora_name,
    parse_layer,
    projector_name,
    read_optional_json,
)
from robustmerge.formats.llava.record import (
    RECORD,
    build_record,
    check_projector_shapes,
    check_values,
    describe_conversion,
    describe_fault,
    raise_problems,
    refuse_source_as_folder,
    with_location,
)
from robustmerge.formats.names import LLAVA
from robustmerge.stage.files import FolderWriter, sha256_of
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

_PROJECTOR = re.compile(rf"model\.{SAVED}\.(linear_[12]\.(?:weight|bias))")
_MERGE_AGAIN = "merge again with merge.out.format=adapter merge.out.rank=16"
_FOLD = (
    "merge it alone, which folds the scaling into B: robustmerge merge task_arithmetic FOLDER -o OUT --set strength=1"
)


def convert_to_original(
    adapter: Path,
    folder: Path,
    like: Path | None = None,
    vision_tower: str | None = None,
    allow_no_projector: bool = False,
) -> dict[str, Any]:
    """Write an expert or a merged adapter in LLaVA's own format; returns the record of it.

    like: a folder in LLaVA's format from which `config.json` and base are copied; by default they are those with which
    the adapter was once converted from LLaVA's format, or those of LLaVA-1.5-7B and 13B. vision_tower: the new
    `mm_vision_tower`. allow_no_projector: accept an adapter without a projector, which then uses that of the base.
    Raises UserError for what the format cannot hold, with the remedy: dense deltas, more than one rank, DoRA, rsLoRA.
    """
    opened = _open_peft_adapter(adapter)
    index = _index_lora(opened)
    projector = _read_projector(opened, index.sizes["hidden"], allow_no_projector)
    raise_problems(adapter, check_values(opened.file, index, every=False))
    first = projector.get(projector_name("0.weight"))
    sizes = {**index.sizes, **({} if first is None else {"picture": first.shape[1]})}
    config, base, notes = _llava_config(adapter, like, sizes, vision_tower)
    raw = read_optional_json(adapter / CONFIG) or {}
    request = original_request(like, vision_tower)
    record = build_record("original", adapter, index, raw["lora_alpha"], opened.file, projector.values(), request)
    record |= {"base": base, "notes": [*notes, *_notes_on_folder_name(folder)]}
    text = "Converted to LLaVA's own format, tensor by tensor, without any change of the numbers."
    configs = {LLAVA_CONFIG: config, CONFIG: original_adapter_config(raw, base)}
    refuse_source_as_folder(adapter, folder)
    lora = {lora_name(key): opened.file.get(name).clone() for key, name in index.names.items()}
    weights = {"adapter_model.bin": _torch_save_bytes(lora), PROJECTOR: _torch_save_bytes(projector)}
    with FolderWriter(folder, [], weights | describe_conversion(record, "", text, configs)):
        return record


def original_request(like: Path | None, vision_tower: str | None) -> dict[str, Any]:
    """The settings that determine a conversion to LLaVA's format, apart from the adapter."""
    digest = sha256_of(like / LLAVA_CONFIG) if like is not None and (like / LLAVA_CONFIG).is_file() else None
    return {"to": "original", "like": digest, "vision_tower": vision_tower}


def _open_peft_adapter(adapter: Path) -> Adapter:
    """Open a PEFT adapter. Raises UserError if LLaVA's format cannot hold it."""
    if (adapter / DELTA_CONFIG).is_file():
        raise UserError(f"{adapter} holds dense deltas, and LLaVA's format holds LoRA alone; {_MERGE_AGAIN}")
    if is_original(adapter):
        raise UserError(f"{adapter} is in LLaVA's own format already")
    opened = move_names(open_adapter(adapter), LLAVA)
    config, problems = opened.config, []
    if config.get("rank_pattern"):
        problems.append(f"rank_pattern gives modules ranks of their own, and LLaVA's format has one; {_MERGE_AGAIN}")
    elif config.get("alpha_pattern"):
        problems.append(f"alpha_pattern gives modules scalings of their own, and LLaVA's format has one; {_FOLD}")
    if opened.is_dora:
        problems.append("use_dora: LLaVA's format has no magnitudes; train with peft.use_dora=false")
    if config.get("use_rslora"):
        problems.append(f"use_rslora: LLaVA's format scales by alpha/r; {_FOLD}")
    if opened.has_lora_bias:
        problems.append("lora_bias: LLaVA's format has no biases of the update")
    if config.get("fan_in_fan_out"):
        problems.append("fan_in_fan_out must be False, got True")
    problems += [
        f"{extra} is trained whole, and only the projector has a place in LLaVA's format"
        for extra in opened.extras
        if not _PROJECTOR.fullmatch(extra)
    ]
    raise_problems(adapter / CONFIG, problems)
    return opened


def _index_lora(opened: Adapter) -> LoraIndex:
    names = [(module, part, name) for module, parts in opened.lora.items() for part, name in parts.items()]
    keys = {name: _parse_module(module, part) for module, part, name in names}
    shapes = {name: opened.file.shape(name) for name in keys}
    return with_location(opened.folder, lambda: index_lora(keys, shapes, opened.config["r"]))


def _parse_module(module: str, part: str) -> LoraKey | None:
    """The key of a module's tensor; None if LLaVA lacks it."""
    tower = "model.language_model."
    return parse_layer(module.removeprefix(tower), part) if module.startswith(tower) else None


def _read_projector(opened: Adapter, hidden: int, allow_none: bool) -> dict[str, Tensor]:
    """The projector's tensors under LLaVA's names; empty if there is none and `allow_none`."""
    if not opened.extras and allow_none:
        return {}
    matches = [match for extra in opened.extras if (match := _PROJECTOR.fullmatch(extra))]
    parts = {match[1]: match[0] for match in matches}
    if missing := [name for name in PROJECTOR_NAMES.values() if name not in parts]:
        raise UserError(
            f"{opened.folder} has no {SAVED}.{missing[0]}, and LLaVA's format holds the whole projector; if that of "
            "the base is meant, say allow_no_projector=true"
        )
    tensors = {part: opened.extra(parts[name]) for part, name in PROJECTOR_NAMES.items()}
    problems = check_projector_shapes({part: tuple(x.shape) for part, x in tensors.items()}, hidden)
    for part, x in tensors.items():
        if problem := describe_fault(x):
            problems.append(f"{parts[PROJECTOR_NAMES[part]]} {problem}")
    raise_problems(opened.folder, problems)
    return {projector_name(part): x.clone() for part, x in tensors.items()}


def _llava_config(
    adapter: Path, like: Path | None, sizes: Mapping[str, int], vision_tower: str | None
) -> tuple[dict[str, Any], str, list[str]]:
    """LLaVA's config.json, its base, and notes for the user about them."""
    size = LLAVA15.get((sizes["layers"], sizes["hidden"]))
    if like is not None:
        path, config = like / LLAVA_CONFIG, read_optional_json(like / LLAVA_CONFIG)
        base = (read_optional_json(like / CONFIG) or {}).get("base_model_name_or_path")
        if not is_llava_config(config):
            raise UserError(f"{path} is no config of LLaVA: it has no mm_projector_type and no mm_vision_tower (like)")
    else:
        path, converted = adapter / RECORD, read_optional_json(adapter / RECORD) or {}
        config, former = (converted.get(key) or {} for key in ("config", "adapter_config"))
        if not isinstance(config, dict) or not isinstance(former, dict):
            raise UserError(f"{path} is no record of a conversion: config and adapter_config must be mappings")
        base = former.get("base_model_name_or_path")
    if not config:
        if size is None:
            raise UserError(
                f"{adapter} is an adapter of {sizes['layers']} layers of width {sizes['hidden']}, which is no "
                "LLaVA-1.5-7B or 13B: name a folder in LLaVA's format whose config.json fits, like=FOLDER"
            )
        config = build_llava_config(size, sizes)
    problems = check_llava_config(config, sizes)
    if base is not None and not LINE[0](base):
        problems.append(f"base_model_name_or_path must be {LINE[1]}, got {quote(base)}")
    raise_problems(path, problems)
    base = base or (size.original if size else "")
    notes = [] if base else ["base_model_name_or_path is empty; LLaVA's scripts take the base as --model-base"]
    tower = vision_tower or config.get("mm_vision_tower", TOWER)
    if not vision_tower and str(tower).startswith("/") and not Path(tower).exists():
        if Path(tower).name == Path(TOWER).name:
            notes.append(f"mm_vision_tower was {tower}, which is not here, and became {TOWER}")
            tower = TOWER
        else:
            notes.append(f"mm_vision_tower is {tower}, which is not here; vision_tower=NAME sets another")
    return {**config, "mm_vision_tower": tower}, base, notes


def _notes_on_folder_name(folder: Path) -> list[str]:
    """A note if the folder's name lacks 'llava' or 'lora': LLaVA's loader then loads no LoRA and reports nothing."""
    absent = [word for word in ("llava", "lora") if word not in folder.absolute().name.lower()]
    if not absent:
        return []
    return [
        f"LLaVA's scripts load an adapter only from a folder with 'llava' and 'lora' in its name, '{folder.name}' has "
        f"no {' and no '.join(map(repr, absent))}; call it llava-lora-{folder.name}"
    ]


def _torch_save_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of torch.save; to memory, as the name of a file would become part of them."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
