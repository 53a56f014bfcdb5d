"""Reading, checking and writing of a LoRA adapter's `adapter_config.json`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError

CONFIG = "adapter_config.json"
SAME_BASE = ("base_model_name_or_path", "revision")
SAME_TARGETS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "fan_in_fan_out", "bias",
)  # fmt: skip
UNDERSTOOD = {
    *SAME_BASE, *SAME_TARGETS, "peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
}  # fmt: skip
# The other ways to start (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base model.
PLAIN_INITS = (True, False, None, "true", "false", "gaussian", "orthogonal", "eva")
# peft saves these for the task whether or not the config of an older version lists them.
SAVED_FOR_TASK = {
    "SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",),
}  # fmt: skip


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read the config of an adapter folder. Raises UserError if there is none, or it is not of LoRA."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"expert '{name}': {folder} is no adapter folder, it has no {CONFIG}")
    config = read_json(folder / CONFIG, "a LoRA config")
    try:
        if str(config.get("peft_type")).upper() != "LORA":
            raise UserError(f"expert '{name}' ({folder}): peft_type must be LORA, got {config.get('peft_type')}")
        config = {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expert '{name}': {folder / CONFIG} is not a LoRA config: {error!r}") from error
    if problems := _find_wrong_types(config):
        raise UserError("\n".join(f"expert '{name}': {folder / CONFIG}: {problem}" for problem in problems))
    return config


def _find_wrong_types(config: Mapping[str, Any]) -> list[str]:
    """Values of another type than peft writes."""
    problems = []
    saved = config.get("modules_to_save")
    if saved and not (isinstance(saved, list) and all(isinstance(module, str) for module in saved)):
        problems.append(f"modules_to_save must be a list of names, got {saved!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, Mapping):
            problems.append(f"{key} must map patterns to numbers, got {pattern!r}")
            continue
        for module, value in pattern.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                problems.append(f"{key}: the value of '{module}' must be a number, got {value!r}")
            try:
                re.compile(module)
            except re.error as error:
                problems.append(f"{key}: '{module}' is no regular expression: {error}")
    return problems


def find_unsupported(config: Mapping[str, Any]) -> list[str]:
    """Settings of the config that cannot be merged here; an unknown key counts as soon as it has a value."""
    problems = []
    bias = config.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        problems.append(f"bias must be none, all or lora_only, got {bias}")
    if bias == "all" and saved_modules(config):
        problems.append("bias=all beside modules_to_save saves the same biases twice, which cannot be merged here")
    if config.get("use_dora") and config.get("lora_bias"):
        problems.append("use_dora and lora_bias exclude each other in peft, but both are set")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        problems.append(f"init_lora_weights={init} changes the base model; convert it to plain LoRA first")
    others = sorted(set(config) - UNDERSTOOD)
    return problems + [f"{key}={config[key]} cannot be merged here" for key in others if config[key]]


def saved_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that are trained and saved whole: those of modules_to_save and the head of the task."""
    return (*(config.get("modules_to_save") or ()), *SAVED_FOR_TASK.get(config.get("task_type") or "", ()))


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that the config gives a module."""
    return _from_pattern(config.get("rank_pattern"), module, config["r"])


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha/r of one module, or alpha/sqrt(r) with rsLoRA (https://arxiv.org/abs/2312.03732)."""
    alpha = _from_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _from_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Look up a module in a pattern of the config: the first key that matches the end of its name, as in peft."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def config_for(
    ranks: Mapping[str, int], like: Mapping[str, Any], use_dora: bool = False, lora_bias: bool = False
) -> dict[str, Any]:
    """Build the config of an adapter with scaling 1 (alpha = r for every module); lists are sorted."""
    r = Counter(sorted(ranks.values())).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in sorted(ranks.items()) if rank != r}
    kept = {key: like.get(key) for key in ("task_type", "auto_mapping", *SAME_BASE, *SAME_TARGETS)}
    return {
        **{key: sorted(value) if isinstance(value, (list, set)) else value for key, value in kept.items()},
        "peft_type": "LORA", "r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": others,
        "fan_in_fan_out": bool(like.get("fan_in_fan_out")), "lora_dropout": 0.0, "bias": like.get("bias") or "none",
        "use_rslora": False, "use_dora": use_dora, "lora_bias": lora_bias, "init_lora_weights": True,
        "inference_mode": True,
    }  # fmt: skip
