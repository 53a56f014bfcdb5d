"""Reading, checking and writing of a LoRA adapter's `adapter_config.json`."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustmerge.formats.patterns import PatternError, find_first_matches, list_ends, match_whole
from robustmerge.stage.files import read_json
from robustmerge.stage.records import is_number
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import plain, quote, shorten

CONFIG = "adapter_config.json"
DELTA_CONFIG = "delta_config.json"
SOURCE_FILES = (CONFIG, DELTA_CONFIG)  # by one of which a folder is one of LoRA, or of dense updates
WEIGHTS = "adapter_model.safetensors"
WEIGHT_FILES = (WEIGHTS, "adapter_model.bin")  # the first that is there is read
SAME_BASE = ("base_model_name_or_path", "revision")
# How the modules with LoRA are spelled; which they are, the tensors say.
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
SAME_KIND = ("fan_in_fan_out", "bias", "ensure_weight_tying")
UNDERSTOOD = {
    *SAME_BASE, *TARGETS, *SAME_KIND, "modules_to_save", "peft_type", "task_type", "auto_mapping", "peft_version",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "init_lora_weights",
    "rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
    "merge_weights",  # peft 0.1: whether evaluation adds the update to the weights
    "enable_lora",  # peft 0.1: LoRA of parts of a fused layer, whose B has three dimensions then
}  # fmt: skip
# The other ways to start (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base model.
PLAIN_INITS = (True, False, None, "true", "false", "gaussian", "orthogonal", "eva", "mica")
TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")  # of peft 0.21
# peft saves these for the task whether or not the config of an older version lists them.
SAVED_FOR_TASK = {
    "SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",),
}  # fmt: skip
LARGEST_RANK = 10**6
MOST_SAVED = 400
LONGEST_NAME = 1000  # characters of a module's name and of a base model's


# --- what a config may hold ---------------------------------------------------------------------------------------


def _is_rank(value: Any) -> bool:
    return is_number(value) and 1 <= value <= LARGEST_RANK and value == int(value)


def _is_line(value: Any) -> bool:
    """A text that may be the name or the path of a model."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or plain(value) != value or re.search(r"[\t\n]", value):
        return False
    return all(len(os.fsencode(part)) <= 255 for part in value.split("/"))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_saved(value: Any) -> bool:
    """Whether a value is names that mean only themselves to peft, which reads them as regular expressions."""
    return (
        _is_names(value)
        and len(value) <= MOST_SAVED
        and not any(re.search(r"[\\^$*+?{}\[\]|()]", name) for name in value)
    )


def _is_layer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_layers(value: Any) -> bool:
    return _is_layer(value) or (isinstance(value, list) and all(map(_is_layer, value)))


RANK = (_is_rank, f"a whole number from 1 to {LARGEST_RANK}")
ALPHA = (is_number, "a finite number")
FLAG = (lambda value: isinstance(value, bool), "true or false")
LINE = (_is_line, f"one line of text, of at most {LONGEST_NAME} characters and 255 bytes between slashes")
NAMES_OR_TEXT = (lambda value: isinstance(value, str) or _is_names(value), "a text or a list of texts")
MAPPING = (lambda value: isinstance(value, dict), "a mapping")
# key -> whether a value is allowed, and what is. Null is the same as no such key.
SCHEMA: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: isinstance(value, str) and value.upper() == "LORA", "LORA"),
    "r": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "rank_pattern": MAPPING,
    "alpha_pattern": MAPPING,
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"), FLAG),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), NAMES_OR_TEXT),
    "layers_to_transform": (_is_layers, "a whole number or a list of them"),
    "modules_to_save": (_is_saved, f"a list of at most {MOST_SAVED} names"),
    **dict.fromkeys(SAME_BASE, LINE),
    "task_type": (lambda value: value in TASKS, f"one of {', '.join(TASKS)}"),
    "auto_mapping": MAPPING,
}
REQUIRED = ("peft_type", "r", "lora_alpha")
PATTERNS = {"rank_pattern": RANK, "alpha_pattern": ALPHA}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read the config of an adapter folder. Raises UserError if there is none, or with all values of a wrong type."""
    try:
        require_adapter(folder)
        config = read_json(folder / CONFIG, "a LoRA config")
    except UserError as error:
        raise UserError(f"expert '{name}': {error}") from error
    return check_config(config, f"expert '{name}': {folder / CONFIG}: ")


def check_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of an adapter, its rank and alpha as numbers. where: before every message.

    Raises UserError with all values of a wrong type.
    """
    if problems := first_few(_find_wrong_values(config)):
        raise UserError("\n".join(f"{where}{problem}" for problem in problems))
    return {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}


def require_adapter(folder: Path) -> None:
    """Raises UserError, with the adapters one level deeper, unless the folder has an adapter's config."""
    if (folder / CONFIG).exists() or (folder / CONFIG).is_symlink():
        return
    deeper = [path.parent.name for path in folder.glob(f"*/{CONFIG}")] if folder.is_dir() else []
    deeper.sort(key=lambda name: [part.zfill(20) for part in re.split(r"(\d+)", name)])  # checkpoint-9 before -10
    where = f"; there are adapters one level deeper, give one of them: {', '.join(deeper[-5:])}" if deeper else ""
    raise UserError(f"{folder} is no adapter folder, it has no {CONFIG}{where}")


def find_weights(folder: Path) -> Path | None:
    """The file of an adapter folder's tensors, or None. A link to nowhere counts: who opens it says why."""
    return next((folder / name for name in WEIGHT_FILES if os.path.lexists(folder / name)), None)


def _find_wrong_values(config: Mapping[str, Any]) -> list[str]:
    """Values that peft does not write."""
    problems = []
    for key, (is_allowed, allowed) in SCHEMA.items():
        value = config.get(key)
        if key in REQUIRED if value is None else not is_allowed(value):
            value_or_null = "" if key in REQUIRED else " or null"
            problems.append(f"{key} must be {allowed}{value_or_null}, got {quote(value)}")
        elif key in PATTERNS:
            is_value, what = PATTERNS[key]
            wrong = {module: inner for module, inner in (value or {}).items() if not is_value(inner)}
            problems += [f"{key}: the value of {quote(m)} must be {what}, got {quote(x)}" for m, x in wrong.items()]
    return problems


def find_unsupported(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """What of the config cannot be merged here; an unknown key counts as soon as it has a value. modules: with LoRA."""
    problems = []
    if config.get("bias") == "all" and saved_modules(config):
        problems.append("bias=all beside modules_to_save saves the same biases twice, which cannot be merged here")
    if config.get("use_dora") and config.get("lora_bias"):
        problems.append("use_dora and lora_bias exclude each other in peft, but both are set")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights={quote(init)} changes the base model; convert it to plain LoRA first (A and B of that "
            "cancel in part: merge it by a method that works on their product, or with merge.space=delta)"
        )
    if hidden := _find_saved(config, modules):
        problems.append(f"module '{min(hidden)}' has LoRA and is in modules_to_save, of which peft attaches only one")
    others = sorted(key for key in set(config) - UNDERSTOOD if config[key])
    return problems + first_few([f"{shorten(plain(key))}={quote(config[key])} cannot be merged here" for key in others])


def _find_saved(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Those of the modules that are saved whole, or are parts of one that is: peft puts no LoRA there."""
    saved = saved_modules(config)
    return [module for module in modules if any(f".{name}." in f".{module}." for name in saved)]


def saved_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that are trained and saved whole: those of modules_to_save and the head of the task."""
    return (*(config.get("modules_to_save") or ()), *SAVED_FOR_TASK.get(config.get("task_type") or "", ()))


# --- the rank and the scaling of a module --------------------------------------------------------------------------


def resolve_patterns(config: Mapping[str, Any], modules: Collection[str], where: str) -> dict[str, Any]:
    """The config whose rank_pattern and alpha_pattern name the modules themselves. where: before every message.

    modules: the names that peft matches. Raises UserError for patterns that cannot be used.
    """
    if long := [module for module in modules if len(module) > LONGEST_NAME]:
        raise UserError(f"{where}module {quote(long[0])} has a name of more than {LONGEST_NAME} characters")
    resolved, problems = dict(config), []
    for key in PATTERNS:
        values = config.get(key) or {}
        try:
            matches = find_first_matches(list(values), list(modules)) if values else [None] * len(modules)
        except PatternError as error:
            if error.place is None:
                problems.append(f"{key}: {error}; write names of modules")
            else:
                problems.append(f"{key}: {quote(list(values)[error.place])} is no regular expression: {error}")
            continue
        named = zip(modules, matches, strict=True)
        resolved[key] = {module: values[match] for module, match in named if match is not None}
    if problems:
        raise UserError("\n".join(f"{where}{problem}" for problem in problems))
    return resolved


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that a config with resolved patterns gives a module."""
    return int(config["rank_pattern"].get(module, config["r"]))


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha/r of one module, or alpha/sqrt(r) with rsLoRA (https://arxiv.org/abs/2312.03732)."""
    alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# --- the config of a merged adapter --------------------------------------------------------------------------------


def anchor_patterns(values: Mapping[str, Any]) -> dict[str, Any]:
    """A rank_pattern or alpha_pattern for peft that names modules and matches no other."""
    return {f"^{re.escape(module)}": value for module, value in values.items()}


def config_for(
    ranks: Mapping[str, int], like: Mapping[str, Any], use_dora: bool = False, lora_bias: bool = False
) -> dict[str, Any]:
    """Build the config of an adapter with scaling 1 (alpha = r for every module); lists are sorted.

    like: of an expert. Its targets are kept where peft finds every module by them, else they are the modules' names.
    """
    r = Counter(sorted(ranks.values())).most_common(1)[0][0]
    others = anchor_patterns({module: rank for module, rank in sorted(ranks.items()) if rank != r})
    kept = {key: like.get(key) for key in ("task_type", "auto_mapping", "modules_to_save", *SAME_BASE, *TARGETS)}
    if not attaches(kept, sorted(ranks)):
        kept |= {**dict.fromkeys(TARGETS), "target_modules": sorted(ranks)}
    tying = {"ensure_weight_tying": True} if like.get("ensure_weight_tying") else {}
    return {
        **{key: sorted(value) if isinstance(value, (list, set)) else value for key, value in kept.items()}, **tying,
        "peft_type": "LORA", "r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": others,
        "fan_in_fan_out": bool(like.get("fan_in_fan_out")), "lora_dropout": 0.0, "bias": like.get("bias") or "none",
        "use_rslora": False, "use_dora": use_dora, "lora_bias": lora_bias, "init_lora_weights": True,
        "inference_mode": True,
    }  # fmt: skip


def attaches(config: Mapping[str, Any], modules: Sequence[str]) -> bool:
    """Whether peft puts LoRA on each of the modules by the targets of a config (`check_target_module_exists`)."""
    targets, excluded, layers, parents = (config.get(key) for key in TARGETS)
    is_text = isinstance(targets, str)
    if (is_text and (layers is not None or parents is not None)) or (parents and layers is None):
        return False  # peft refuses such a config
    try:
        if excluded and any(_match_names(excluded, modules)):
            return False
        if not all(_match_names(targets or [], modules)):
            return False
    except PatternError:
        return False
    if layers is None or layers == []:
        return True
    whole = set(targets or ())
    inner = [module for module in modules if module not in whole]
    parents = [parents] if isinstance(parents, str) else parents or []
    layers = {layers} if isinstance(layers, int) else set(layers)
    return _are_names(parents) and all(_layer_of(module, parents) in layers for module in inner)


def _match_names(names: str | list[str], modules: Sequence[str]) -> list[bool]:
    """Which modules a text, a regular expression, or a list of (ends of) names matches."""
    if isinstance(names, str):
        return match_whole(names, modules)
    ends = set(names)
    return [any(end in ends for end in list_ends(module)) for module in modules]


def _are_names(parents: Sequence[str]) -> bool:
    """Whether layers_pattern holds a few names; peft takes them for regular expressions."""
    return len(parents) <= 20 and all(re.fullmatch(r"[\w.]+", parent) for parent in parents)


def _layer_of(module: str, parents: Sequence[str]) -> int | None:
    """The number of the layer that a module is in: the first number behind one of the parents, or behind any name."""
    starts = [rf"(?:^|.*?\.){parent}" for parent in parents] or [r".*?\.[^.]*"]
    matches = (re.match(rf"{start}\.(\d+)\.", module) for start in starts)
    return next((int(match[1]) for match in matches if match), None)
