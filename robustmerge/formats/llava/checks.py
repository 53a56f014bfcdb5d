"""Checks of an adapter in LLaVA's own format: its tensors and its configs. Importing this does not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustmerge.formats.adapter_config import LINE, find_unsupported
from robustmerge.formats.llava.names import LINEARS, MODEL_TYPES, LoraKey, lora_name
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

# Values of LLaVA's config.json that LLaVA-1.5 has; another value is another architecture.
_LLAVA_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": MODEL_TYPES,
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("pad", "square", None),
}
# Values of peft's config beside rank, alpha, dropout and targets with which an adapter is plain LoRA.
_PEFT_VALUES: dict[str, tuple[Any, ...]] = {
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
class LoraIndex:
    """The LoRA tensors of a folder by layer, linear and part, and the sizes that follow from their shapes.

    names: of the tensors in the file; sizes: by "hidden", "queries", "keys", "inner", "rank", "layers".
    """

    names: Mapping[LoraKey, str] = field(repr=False)
    sizes: Mapping[str, int]


def index_lora(keys: Mapping[str, LoraKey | None], shapes: Mapping[str, Sequence[int]], rank: int) -> LoraIndex:
    """Index the LoRA tensors of a file. keys, shapes: by name in the file; the key is None if LLaVA has no such tensor.

    Raises UserError for tensors that LLaVA lacks, that are missing, occur twice, or whose shapes do not fit.
    """
    problems = [_describe_misplaced(name) for name, key in sorted(keys.items()) if key is None]
    names: dict[LoraKey, str] = {}
    for name, key in sorted(keys.items()):
        if key in names:
            problems.append(f"{names[key]} and {name} are two spellings of one tensor")
        elif key is not None:
            names[key] = name
    layers = 1 + max((key[0] for key in names), default=-1)
    expected = [(layer, linear, part) for layer in range(layers) for linear in LINEARS for part in "AB"]
    missing = [lora_name(key) for key in expected if key not in names]
    problems += [
        f"{name} is missing; an adapter of {layers} layers has {len(expected)} LoRA tensors, this one {len(names)}"
        for name in missing
    ]
    if not names:
        problems.append("it holds no LoRA of a Llama's layers")
    sizes: dict[str, int] = {"rank": rank}
    for key in expected:
        if key in names and (problem := _describe_misfit(key, tuple(shapes[names[key]]), sizes)):
            problems.append(f"{names[key]} {problem}")
    if problems:
        raise UserError("\n".join(first_few(problems)))
    return LoraIndex({key: names[key] for key in expected}, {**sizes, "layers": layers})


def _describe_misplaced(name: str) -> str:
    if "vision_tower" in name:
        return f"{name} is LoRA in the vision tower, which LLaVA's task training leaves alone"
    return f"{name} is no LoRA of a linear of the language model ({', '.join(LINEARS)})"


def _describe_misfit(key: LoraKey, shape: tuple[int, ...], sizes: dict[str, int]) -> str | None:
    """Why a shape does not fit the rank and `sizes`, or None; sizes seen for the first time are added to `sizes`."""
    _, linear, part = key
    width = LINEARS[linear]["AB".index(part)]
    if len(shape) != 2:
        return f"must be a matrix, got shape {list(shape)}"
    size = sizes.setdefault(width, shape[1] if part == "A" else shape[0])
    expected = (sizes["rank"], size) if part == "A" else (size, sizes["rank"])
    if shape != expected:
        return f"has shape {list(shape)}, but rank {sizes['rank']} and the tensors before it want {list(expected)}"
    return None


def check_adapter_config(config: Mapping[str, Any]) -> list[str]:
    """Problems of an adapter's config, whose types are checked: values that make it anything but plain LoRA."""
    problems = find_unsupported(config, ())
    if config["lora_alpha"] <= 0:
        problems.append(f"lora_alpha must be a number above 0, got {config['lora_alpha']}")
    for key, allowed in _PEFT_VALUES.items():
        if config.get(key) not in allowed:
            problems.append(f"{key} must be {allowed[0]!r}, got {quote(config[key])}")
    return problems


def check_llava_config(config: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Problems of LLaVA's config: values of another model than LLaVA-1.5, or of other sizes than the tensors."""
    problems = [
        f"{key} must be {' or '.join(map(repr, allowed))}, got {quote(config[key])}"
        for key, allowed in _LLAVA_VALUES.items()
        if key in config and config[key] not in allowed
    ]
    if (tower := config.get("mm_vision_tower")) is not None and not LINE[0](tower):
        problems.append(f"mm_vision_tower must be {LINE[1]}, got {quote(tower)}")
    keys = {
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "intermediate_size": "inner",
        "mm_hidden_size": "picture",
    }
    for key, size in keys.items():
        if key in config and size in sizes and config[key] != sizes[size]:
            problems.append(f"{key} is {quote(config[key])}, but the tensors have {sizes[size]}")
    return problems
