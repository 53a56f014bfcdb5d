"""PEFT adapter folders in and out.

Reading folds alpha/r (rsLoRA: alpha/sqrt(r)) into B, so that the update of a pair is B @ A and nothing else;
writing gives adapters of scaling 1. An adapter with anything in it that is not read here is refused: never a wrong
one in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.runs import write_atomically
from robustmerge.settings import UserError
from robustmerge.tensor_files import TensorFile, TensorWriter

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SAME_BASE = ("base_model_name_or_path", "revision")
SAME_TARGETS = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "fan_in_fan_out",
)  # fmt: skip
UNDERSTOOD = {
    *SAME_BASE, *SAME_TARGETS, "peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern",
    "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
}  # fmt: skip
# The other ways to start (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base model.
PLAIN_INITS = (True, False, None, "true", "false", "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update B @ A of one linear layer. A: [r, d_in], B: [d_out, r], alpha/r included in B."""

    A: Tensor
    B: Tensor

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def delta(self) -> Tensor:
        """The dense update [d_out, d_in]."""
        return self.B @ self.A


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that was opened and understood; its tensors are read when they are asked for.

    shapes: module -> (d_out, rank, d_in). extras: the tensors of `modules_to_save`, by name without the prefix.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    file: TensorFile = field(repr=False)
    shapes: Mapping[str, tuple[int, int, int]] = field(repr=False)
    extras: tuple[str, ...] = field(repr=False)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.shapes))

    @property
    def ranks(self) -> dict[str, int]:
        return {module: shape[1] for module, shape in self.shapes.items()}

    @cached_property
    def dtype(self) -> torch.dtype:
        dtypes = {self.file.dtype(_key(module, part)) for module in self.modules for part in "AB"}
        return common_dtype(dtypes)

    def pair(self, module: str) -> LoraPair:
        """The pair of one module in float32, its scaling folded into B."""
        B = self.file.get(_key(module, "B")).float() * scaling_of(self.config, module, self.ranks[module])
        return LoraPair(self.file.get(_key(module, "A")).float(), B)

    def extra(self, name: str) -> Tensor:
        return self.file.get(PREFIX + name)

    def extra_shape(self, name: str) -> tuple[int, ...]:
        return self.file.shape(PREFIX + name)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all of these."""
    dtypes = sorted(set(dtypes), key=str)
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha/r of one module, or alpha/sqrt(r) with rsLoRA (https://arxiv.org/abs/2312.03732)."""
    alpha = _from_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _from_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The first key that matches the end of the module's name wins, as in peft."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _key(module: str, part: str) -> str:
    return f"{PREFIX}{module}.lora_{part}.weight"


def open_adapter(folder: Path | str, name: str | None = None) -> Adapter:
    """Open an adapter folder. name: how messages call it, by default the folder's name.

    Raises UserError with all reasons why it cannot be read as plain LoRA.
    """
    folder = Path(folder)
    name = name or folder.name
    config, file = _read_config(folder, name), open_tensors(folder, name)
    shapes, extras, problems = _sort_tensors(file, config)
    problems = [*_refusals(config, folder), *problems]
    if problems:
        raise UserError("\n".join(f"expert '{name}' ({folder}): {problem}" for problem in problems))
    return Adapter(name, folder, config, file, shapes, tuple(extras))


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"expert '{name}': {folder} is no adapter folder, it has no {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        return {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expert '{name}': {folder / CONFIG} is not a LoRA config: {error!r}") from error


def open_tensors(folder: Path, name: str) -> TensorFile:
    """The tensors of an adapter folder of any kind, not yet read. Raises UserError if there are none to read."""
    return TensorFile(_weights_file(folder, name))


def _weights_file(folder: Path, name: str) -> Path:
    for file in (folder / WEIGHTS, folder / "adapter_model.bin"):
        if file.is_file():
            return file
    found = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
    raise UserError(f"expert '{name}': {folder} has no {WEIGHTS} and no adapter_model.bin; it has {found}")


def _refusals(config: Mapping[str, Any], folder: Path) -> list[str]:
    """What the config switches on that cannot be merged here. An unknown key counts as soon as it has a value."""
    problems = []
    if str(config.get("peft_type")).upper() != "LORA":
        problems.append(f"peft_type must be LORA, got {config.get('peft_type')}")
    if config.get("use_dora"):
        problems.append("it is a DoRA adapter (use_dora), whose magnitudes cannot be merged here")
    if config.get("lora_bias") or config.get("bias", "none") != "none":
        problems.append("it has biases (lora_bias, bias), which cannot be merged here")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        problems.append(f"init_lora_weights={init} changes the base model; convert it to plain LoRA first")
    others = sorted(set(config) - UNDERSTOOD - {"use_dora", "lora_bias"})
    problems += [f"{key}={config[key]} cannot be merged here" for key in others if config[key]]
    if (folder / "non_lora_trainables.bin").exists():
        problems.append("non_lora_trainables.bin must be converted to modules_to_save first; it would be lost")
    return problems


def _sort_tensors(
    file: TensorFile, config: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, int, int]], list[str], list[str]]:
    """Tell LoRA pairs from the tensors of modules_to_save: (module -> shape, extras, problems)."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    extras, problems = [], []
    saved = [re.escape(module) for module in config.get("modules_to_save") or ()]
    for key in file.names:
        lora = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if lora:
            found.setdefault(lora[1], {})[lora[2]] = file.shape(key)
        elif key.startswith(PREFIX) and any(re.search(rf"\.{module}\.", key) for module in saved):
            extras.append(key.removeprefix(PREFIX))
        else:
            problems.append(f"tensor {key} is neither lora_A or lora_B of a linear layer nor of modules_to_save")
    shapes = {}
    for module, parts in found.items():
        problem = _shape_problem(parts, config, module)
        if problem:
            problems.append(f"module '{module}': {problem}")
        else:
            shapes[module] = (parts["B"][0], parts["A"][0], parts["A"][1])
    if not found:
        problems.append(f"{file.path.name} holds no LoRA tensors")
    return shapes, sorted(extras), problems


def _shape_problem(parts: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], module: str) -> str | None:
    if set(parts) != {"A", "B"}:
        return f"it has lora_{min(parts)} only"
    A, B = parts["A"], parts["B"]
    if len(A) != 2 or len(B) != 2:
        return f"only linear layers can be merged, got lora_A {list(A)} and lora_B {list(B)}"
    rank = _from_pattern(config.get("rank_pattern"), module, config["r"])
    if not A[0] == B[1] == rank:
        return f"the config gives rank {rank}, the tensors are lora_A {list(A)} and lora_B {list(B)}"
    return None


class AdapterWriter:
    """Writes an adapter folder pair by pair; nothing is there before the block has ended well.

    like: the config of an expert, whose base model and targets the new adapter has.
    """

    def __init__(self, folder: Path, like: Mapping[str, Any], dtype: torch.dtype = torch.float32, card: str = ""):
        self.folder, self.like, self.dtype, self.card = folder, like, dtype, card
        self.ranks: dict[str, int] = {}
        self._tensors = TensorWriter(folder / WEIGHTS)

    def __enter__(self) -> AdapterWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tensors.__enter__()
        return self

    def add_pair(self, module: str, pair: LoraPair) -> None:
        """Raises UserError if a value is too large for the dtype."""
        self.ranks[module] = pair.rank
        for part, x in (("A", pair.A), ("B", pair.B)):
            self._add(_key(module, part), x.to(self.dtype), f"module '{module}'")

    def add_extra(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        self._add(PREFIX + name, tensor, f"'{name}'")

    def _add(self, key: str, tensor: Tensor, what: str) -> None:
        if not torch.isfinite(tensor).all():
            raise UserError(f"{what}: the merged values do not fit {tensor.dtype}; take merge.out.dtype=float32")
        self._tensors.add(key, tensor)

    def __exit__(self, *raised: Any) -> None:
        self._tensors.__exit__(*raised)
        if raised[0] is None:
            write_atomically(self.folder / "README.md", self.card)
            config = json.dumps(config_for(self.ranks, self.like), indent=2, sort_keys=True)
            write_atomically(self.folder / CONFIG, config + "\n")


def config_for(ranks: Mapping[str, int], like: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter with scaling 1: alpha = r, for every module. Lists are sorted."""
    r = Counter(sorted(ranks.values())).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in sorted(ranks.items()) if rank != r}
    kept = {key: like.get(key) for key in ("task_type", "auto_mapping", *SAME_BASE, *SAME_TARGETS)}
    return {
        **{key: sorted(value) if isinstance(value, (list, set)) else value for key, value in kept.items()},
        "peft_type": "LORA", "r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": others,
        "fan_in_fan_out": bool(like.get("fan_in_fan_out")), "lora_dropout": 0.0, "bias": "none",
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
