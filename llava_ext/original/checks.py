"""What an adapter in LLaVA's own format must hold, and what its configs may say. Importing this does not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_ext.original.names import LINEARS, MODEL_TYPES, Place, lora_name
from robustmerge.stage.settings import UserError, first_few

# What LLaVA's config.json may say; everything else of another value is another architecture than LLaVA-1.5.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "model_type": MODEL_TYPES,
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("pad", "square", None),
}
# What peft 0.4 knows beside rank, alpha, dropout and targets, and what later versions add.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class Layout:
    """Where every LoRA tensor of a folder belongs, and the sizes that follow. names: place -> name in the file.

    sizes: "hidden", "queries", "keys", "inner", "rank", "layers" -> number.
    """

    names: Mapping[Place, str] = field(repr=False)
    sizes: Mapping[str, int]


def layout_of(places: Mapping[str, Place | None], shapes: Mapping[str, Sequence[int]], rank: int) -> Layout:
    """Sort the LoRA tensors of a file. places, shapes: by name in the file; None: it has no place in a LLaVA.

    Raises UserError with what has no place, is missing, there twice, or of a shape that does not fit the others.
    """
    problems = [_astray(name) for name, place in sorted(places.items()) if place is None]
    names: dict[Place, str] = {}
    for name, place in sorted(places.items()):
        if place in names:
            problems.append(f"{names[place]} and {name} are two spellings of one tensor")
        elif place is not None:
            names[place] = name
    layers = 1 + max((place[0] for place in names), default=-1)
    wanted = [(layer, linear, part) for layer in range(layers) for linear in LINEARS for part in "AB"]
    missing = [lora_name(place) for place in wanted if place not in names]
    problems += [
        f"{name} is missing; an adapter of {layers} layers has {len(wanted)} LoRA tensors, this one {len(names)}"
        for name in missing
    ]
    if not names:
        problems.append("it holds no LoRA of a Llama's layers")
    sizes: dict[str, int] = {"rank": rank}
    for place in wanted:
        if place in names and (problem := _misfit(place, tuple(shapes[names[place]]), sizes)):
            problems.append(f"{names[place]} {problem}")
    if problems:
        raise UserError("\n".join(first_few(problems)))
    return Layout({place: names[place] for place in wanted}, {**sizes, "layers": layers})


def _astray(name: str) -> str:
    if "vision_tower" in name:
        return f"{name} is LoRA in the vision tower, which LLaVA's task training leaves alone"
    return f"{name} is no LoRA of a linear of the language model ({', '.join(LINEARS)})"


def _misfit(place: Place, shape: tuple[int, ...], sizes: dict[str, int]) -> str | None:
    """Why a shape does not fit the rank and the tensors before it; what it says of the sizes is added to them."""
    _, linear, part = place
    width = LINEARS[linear]["AB".index(part)]
    if len(shape) != 2:
        return f"must be a matrix, got shape {list(shape)}"
    found = shape[1] if part == "A" else shape[0]
    size = sizes.setdefault(width, found)
    wanted = (sizes["rank"], size) if part == "A" else (size, sizes["rank"])
    if shape != wanted:
        return f"has shape {list(shape)}, but rank {sizes['rank']} and the tensors before it want {list(wanted)}"
    return None


def check_adapter_config(config: Mapping[str, Any]) -> list[str]:
    """What the adapter's config switches on that this format, or its conversion, does not have."""
    problems = []
    if str(config.get("peft_type")).upper() != "LORA":
        problems.append(f"peft_type must be LORA, got {config.get('peft_type')}")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            problems.append(f"{key} must be a number above 0, got {value!r}")
    for key, allowed in _PLAIN.items():
        if config.get(key) not in allowed:
            problems.append(f"{key} must be {allowed[0]!r}, got {config[key]!r}")
    return problems


def check_llava_config(config: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Where LLaVA's config tells of another model than LLaVA-1.5, or than the tensors."""
    problems = [
        f"{key} must be {' or '.join(map(repr, allowed))}, got {config[key]!r}"
        for key, allowed in _ALLOWED.items()
        if key in config and config[key] not in allowed
    ]
    told = {
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "intermediate_size": "inner",
        "mm_hidden_size": "picture",
    }
    for key, size in told.items():
        if key in config and size in sizes and config[key] != sizes[size]:
            problems.append(f"{key} is {config[key]!r}, but the tensors have {sizes[size]}")
    return problems
