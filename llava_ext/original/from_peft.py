"""An adapter of ours, an expert or a merged one, in LLaVA's own format, so that its own scripts can run it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_ext.original.checks import Layout, check_llava_config, layout_of
from llava_ext.original.configs import LLAVA15, SAVED, TOWER, build_llava_config, original_adapter_config
from llava_ext.original.names import (
    ADAPTER_CONFIG,
    LLAVA_CONFIG,
    PROJECTOR,
    PROJECTOR_NAMES,
    Place,
    is_llava_config,
    is_original,
    lora_name,
    parse_lora_name,
    projector_name,
    read_if_there,
)
from llava_ext.original.record import (
    RECORD,
    build_record,
    check_projector_shapes,
    check_values,
    finish,
    raise_problems,
    start,
    with_location,
)
from robustmerge.formats.adapter import Adapter, open_adapter
from robustmerge.formats.tensors import all_finite
from robustmerge.stage.files import sha256_of, write_atomically
from robustmerge.stage.settings import UserError

_OUR_LORA = re.compile(r"(?:model\.)?language_model\.(?:model\.)?layers\.(\d+)\.(.+)")
_OUR_PROJECTOR = re.compile(rf"(?:model\.)?{SAVED}\.(linear_[12]\.(?:weight|bias))")
_MERGE_AGAIN = "merge again with merge.out.format=adapter merge.out.rank=16"
_FOLD = (
    "merge it alone, which folds the scaling into B: python scripts/merge.py merge=task_arithmetic merge.strength=1 "
    "'experts=[FOLDER]' out=FOLDER"
)


def convert_to_original(
    adapter: Path,
    folder: Path,
    like: Path | None = None,
    vision_tower: str | None = None,
    allow_no_projector: bool = False,
) -> dict[str, Any]:
    """Write an expert or a merged adapter in LLaVA's own format, and return the record of it.

    like: a folder in LLaVA's format whose `config.json` and base are taken; else those that the adapter was once
    converted with, else those of LLaVA-1.5-7B and 13B. vision_tower: what `mm_vision_tower` becomes.
    allow_no_projector: without a trained projector that of the base is meant.
    Raises UserError for what the format cannot hold, with the remedy: dense deltas, more than one rank, DoRA, rsLoRA.
    """
    opened = _open_ours(adapter)
    layout = _our_layout(opened)
    projector = _our_projector(opened, layout.sizes["hidden"], allow_no_projector)
    raise_problems(adapter, check_values(opened.file, layout, every=False))
    first = projector.get(projector_name("0.weight"))
    sizes = {**layout.sizes, **({} if first is None else {"picture": first.shape[1]})}
    config, base, notes = _llava_config(adapter, like, sizes, vision_tower)
    raw = read_if_there(adapter / ADAPTER_CONFIG) or {}
    asked = original_request(like, vision_tower)
    record = build_record("original", adapter, layout, raw["lora_alpha"], opened.file, projector.values(), asked)
    record |= {"base": base, "notes": [*notes, *_notes_of_name(folder)]}
    start(adapter, folder)
    lora = {lora_name(place): opened.file.get(name).clone() for place, name in layout.names.items()}
    write_atomically(folder / "adapter_model.bin", _saved(lora))
    write_atomically(folder / PROJECTOR, _saved(projector))
    text = "Converted to LLaVA's own format, tensor by tensor, without any change of the numbers."
    configs = {LLAVA_CONFIG: config, ADAPTER_CONFIG: original_adapter_config(raw, base)}
    finish(folder, record, "", text, configs)
    return record


def original_request(like: Path | None, vision_tower: str | None) -> dict[str, Any]:
    """What a conversion to LLaVA's format depends on beside the adapter."""
    digest = sha256_of(like / LLAVA_CONFIG) if like is not None and (like / LLAVA_CONFIG).is_file() else None
    return {"to": "original", "like": digest, "vision_tower": vision_tower}


def _open_ours(adapter: Path) -> Adapter:
    """An adapter folder of ours that the original format can hold."""
    if (adapter / "delta_config.json").is_file():
        raise UserError(f"{adapter} holds dense deltas, and LLaVA's format holds LoRA alone; {_MERGE_AGAIN}")
    if is_original(adapter):
        raise UserError(f"{adapter} is in LLaVA's own format already")
    opened = open_adapter(adapter)
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
        if not _OUR_PROJECTOR.fullmatch(extra)
    ]
    raise_problems(adapter / ADAPTER_CONFIG, problems)
    return opened


def _our_layout(opened: Adapter) -> Layout:
    names = [(module, part, name) for module, parts in opened.lora.items() for part, name in parts.items()]
    places = {name: _our_place(module, part) for module, part, name in names}
    shapes = {name: opened.file.shape(name) for name in places}
    return with_location(opened.folder, lambda: layout_of(places, shapes, opened.config["r"]))


def _our_place(module: str, part: str) -> Place | None:
    """Also by the names that transformers had before 4.52 (`language_model.model.layers`)."""
    found = _OUR_LORA.fullmatch(module)
    return parse_lora_name(lora_name((int(found[1]), found[2], part))) if found else None


def _our_projector(opened: Adapter, hidden: int, allow_none: bool) -> dict[str, Tensor]:
    """The projector's tensors under LLaVA's names; empty if there is none and that is meant."""
    if not opened.extras and allow_none:
        return {}
    parts = {_OUR_PROJECTOR.fullmatch(extra)[1]: extra for extra in opened.extras}
    if missing := [name for name in PROJECTOR_NAMES.values() if name not in parts]:
        raise UserError(
            f"{opened.folder} has no {SAVED}.{missing[0]}, and LLaVA's format holds the whole projector; if that of "
            "the base is meant, say allow_no_projector=true"
        )
    found = {part: opened.extra(parts[name]) for part, name in PROJECTOR_NAMES.items()}
    problems = check_projector_shapes({part: tuple(x.shape) for part, x in found.items()}, hidden)
    problems += [
        f"{parts[PROJECTOR_NAMES[p]]} holds numbers that are not finite" for p, x in found.items() if not all_finite(x)
    ]
    raise_problems(opened.folder, problems)
    return {projector_name(part): x.clone() for part, x in found.items()}


def _llava_config(
    adapter: Path, like: Path | None, sizes: Mapping[str, int], vision_tower: str | None
) -> tuple[dict[str, Any], str, list[str]]:
    """LLaVA's config.json, the base it belongs to, and what is to be said of them."""
    known = LLAVA15.get((sizes["layers"], sizes["hidden"]))
    converted = read_if_there(adapter / RECORD) or {}
    if like is not None:
        place, config = like / LLAVA_CONFIG, read_if_there(like / LLAVA_CONFIG)
        base = (read_if_there(like / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
        if not is_llava_config(config):
            raise UserError(f"{place} is no config of LLaVA: it has no mm_projector_type and no mm_vision_tower (like)")
    else:
        place, config = adapter / RECORD, converted.get("config")
        base = (converted.get("adapter_config") or {}).get("base_model_name_or_path")
    if config is None and known is None:
        raise UserError(
            f"{adapter} is an adapter of {sizes['layers']} layers of width {sizes['hidden']}, which is no LLaVA-1.5-7B "
            "or 13B: name a folder in LLaVA's format whose config.json fits, like=FOLDER"
        )
    config = dict(config or build_llava_config(known, sizes))
    raise_problems(place, check_llava_config(config, sizes))
    base = base or (known.original if known else "")
    notes = [] if base else ["base_model_name_or_path is empty; LLaVA's scripts take the base as --model-base"]
    tower = vision_tower or config.get("mm_vision_tower", TOWER)
    if not vision_tower and str(tower).startswith("/") and not Path(tower).exists():
        if Path(tower).name == Path(TOWER).name:
            notes.append(f"mm_vision_tower was {tower}, which is not here, and became {TOWER}")
            tower = TOWER
        else:
            notes.append(f"mm_vision_tower is {tower}, which is not here; vision_tower=NAME sets another")
    return {**config, "mm_vision_tower": tower}, base, notes


def _notes_of_name(folder: Path) -> list[str]:
    """LLaVA's loader goes by the folder's name: without both words it loads no LoRA, and says nothing."""
    absent = [word for word in ("llava", "lora") if word not in folder.absolute().name.lower()]
    if not absent:
        return []
    return [
        f"LLaVA's scripts load an adapter only from a folder with 'llava' and 'lora' in its name, '{folder.name}' has "
        f"no {' and no '.join(map(repr, absent))}; rename it, as llava-lora-{folder.name}"
    ]


def _saved(tensors: dict[str, Tensor]) -> bytes:
    """What torch.save writes; through memory, as the name of a file would become part of its bytes."""
    written = io.BytesIO()
    torch.save(tensors, written)
    return written.getvalue()
