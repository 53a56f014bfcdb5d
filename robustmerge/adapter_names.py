"""The names of an adapter file's tensors: which are LoRA of a module, which are trained values of the base model.

Known names are read in every spelling that peft has written (with the adapter's name `default`, with
`modules_to_save`, a magnitude with `.weight`) and written in that of today.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustmerge.adapter_config import rank_of, saved_modules
from robustmerge.tensor_files import TensorFile

PREFIX = "base_model.model."
# part of a module -> its name in the file; A and B are always there, magnitude with DoRA, bias with lora_bias
PARTS = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}
_SPELLINGS = {  # what follows `.lora_` in a name -> part
    "A.weight": "A",
    "A.default.weight": "A",
    "B.weight": "B",
    "B.default.weight": "B",
    "B.bias": "bias",
    "B.default.bias": "bias",
    "magnitude_vector": "magnitude",
    "magnitude_vector.weight": "magnitude",
    "magnitude_vector.default": "magnitude",
    "magnitude_vector.default.weight": "magnitude",
}


@dataclass
class Contents:
    """What an adapter file holds. lora: module -> part -> name in the file. extras: name in the model -> in the file.

    problems: why it cannot be merged; empty if all of it is understood.
    """

    lora: dict[str, dict[str, str]] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sort_names(file: TensorFile, config: Mapping[str, Any]) -> Contents:
    """Tell LoRA from trained values of the base model (modules_to_save, bias), and check LoRA's shapes."""
    contents = Contents()
    for stored in file.names:
        module, _, spelling = stored.removeprefix(PREFIX).rpartition(".lora_")
        if module and spelling in _SPELLINGS:
            place, key = contents.lora.setdefault(module, {}), _SPELLINGS[spelling]
        else:
            place, key = contents.extras, _name_in_model(stored.removeprefix(PREFIX), config)
        if not stored.startswith(PREFIX) or key is None:
            contents.problems.append(_not_understood(stored))
        elif key in place:
            contents.problems.append(f"tensors {place[key]} and {stored} are two spellings of one name")
        else:
            place[key] = stored
    if not contents.lora:
        contents.problems.append(f"{file.path.name} holds no LoRA tensors")
    for module, parts in contents.lora.items():
        if problem := _problem_of(parts, file, config, module):
            contents.problems.append(f"module '{module}': {problem}")
    return contents


def name_in_file(extra: str, modules: Mapping[str, Any]) -> str:
    """Where peft looks for a trained value of the base model: the bias of a LoRA module is that of its base layer."""
    module, _, last = extra.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if module in modules else PREFIX + extra


def _name_in_model(name: str, config: Mapping[str, Any]) -> str | None:
    """The name of a trained value in the base model; None if the config names none such."""
    plain = re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
    if any(re.search(rf"{re.escape(module)}\.", plain) for module in saved_modules(config)):
        inner = re.search(r"\.(base_layer|original_module|lora_\w+)\.", plain)
        return None if inner else plain
    if config.get("bias") in ("all", "lora_only") and plain.endswith(".bias"):
        return plain.replace(".base_layer.bias", ".bias")
    return None


def _not_understood(stored: str) -> str:
    if "lora_embedding_" in stored:
        return f"tensor {stored} is LoRA of an embedding; only linear layers can be merged"
    return f"tensor {stored} is neither lora_A or lora_B of a linear layer nor of modules_to_save"


def _problem_of(parts: Mapping[str, str], file: TensorFile, config: Mapping[str, Any], module: str) -> str | None:
    """Why the tensors of a module are no pair [r, d_in], [d_out, r] with what the config promises beside it."""
    if missing := {"A", "B"} - set(parts):
        return f"it has {' and '.join(sorted(PARTS[part] for part in parts))} but no {PARTS[min(missing)]}"
    A, B = file.shape(parts["A"]), file.shape(parts["B"])
    if len(A) != 2 or len(B) != 2:
        return f"only linear layers can be merged, got lora_A {list(A)} and lora_B {list(B)}"
    rank = rank_of(config, module)
    if not A[0] == B[1] == rank:
        return f"the config gives rank {rank}, the tensors are lora_A {list(A)} and lora_B {list(B)}"
    if whole := [parts[part] for part in sorted(parts) if not file.dtype(parts[part]).is_floating_point]:
        return f"{whole[0]} holds {file.dtype(whole[0])}, not floating point numbers"
    for key, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
        if bool(config.get(key)) != (part in parts):
            return f"{key} is {bool(config.get(key))}, but it has {'a' if part in parts else 'no'} {PARTS[part]}"
        if part in parts and file.shape(parts[part]) != (B[0],):
            return f"{PARTS[part]} must have shape {[B[0]]}, got {list(file.shape(parts[part]))}"
    return None
