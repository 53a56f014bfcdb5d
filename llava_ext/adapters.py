"""LoRA adapters and dense deltas: creation from a seed, saving, and loading without a missing tensor."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from llava_ext.data import derive_seed
from llava_ext.settings import Peft
from robustmerge.formats.adapter import Adapter, move_names, open_adapter
from robustmerge.formats.adapter_config import CONFIG, PATTERNS, WEIGHTS, anchor_patterns
from robustmerge.formats.delta import Delta, open_delta
from robustmerge.formats.names import LLAVA as LLAVA_MOVES
from robustmerge.formats.names import PREFIX, Moves
from robustmerge.formats.tensors import all_finite
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError


class ModelParts(NamedTuple):
    """What adapters of a kind of model have in common.

    frozen: a word in the names of all modules that no adapter may change; title: what that part is called. moves: from
    old names to today's.
    """

    frozen: str
    title: str
    moves: Moves


LLAVA = ModelParts("vision_tower", "vision tower", LLAVA_MOVES)


def add_adapter(
    model: nn.Module,
    settings: Peft,
    base: str,
    seed: int,
    task: str,
    float32: bool = True,
    parts: ModelParts = LLAVA,
) -> PeftModel:
    """Put LoRA on the modules of `settings.targets` and make those of `settings.modules_to_save` trainable.

    A of each module is drawn by the sha256 of (seed, task, module), without the task for `shared_a_init`; B is zero.
    float32: train in float32 whatever the model's dtype, as small steps vanish in bfloat16; off for DeepSpeed, which
    keeps float32 copies itself.
    Raises UserError if the targets match nothing, or anything in the part that stays frozen.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias="none",
        base_model_name_or_path=base,
    )
    matched = [name for name, _ in model.named_modules() if re.fullmatch(settings.targets, name)]
    if not matched:
        raise UserError(f"no module of the model matches peft.targets '{settings.targets}'")
    if astray := [name for name in matched if parts.frozen in name]:
        raise UserError(f"peft.targets must leave the {parts.title} alone, but matches {astray[0]}")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=float32)
    adapted.peft_config["default"].base_model_name_or_path = base
    if float32:
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    draw_a(adapted, seed, None if settings.shared_a_init else task)
    return adapted


@torch.no_grad()
def draw_a(model: PeftModel, seed: int, task: str | None) -> None:
    """Draw every A uniform in +-1/sqrt(d_in), as PEFT does, each by its own generator. task: None for all alike."""
    for name, weight in model.named_parameters():
        if ".lora_A." in name:
            module = name.split(".lora_A.")[0].removeprefix(PREFIX)
            generator = torch.Generator().manual_seed(derive_seed(seed, task or "all tasks", module))
            bound = math.sqrt(1.0 / weight.shape[1])
            drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
            weight.copy_(drawn.to(weight.dtype))


def hash_a(model: PeftModel) -> str:
    """sha256 of every A, sorted by module: equal for experts that start from the same A."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if ".lora_A." in name:
            digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: Path, parts: ModelParts = LLAVA) -> None:
    """Write the adapter in PEFT's format; its bytes depend on its content alone.

    Raises UserError if nothing was learned or if there is LoRA in the part that stays frozen.
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in sorted(state.items())}
    check_adapter(tensors, parts)
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(_plain(config), indent=2, sort_keys=True) + "\n")


def check_adapter(tensors: dict[str, Tensor], parts: ModelParts = LLAVA) -> None:
    """Check a trained adapter. Raises UserError for LoRA in the frozen part, values not finite, or B all zero."""
    if astray := [name for name in tensors if parts.frozen in name and "lora_" in name]:
        raise UserError(f"there is LoRA in the {parts.title}: {astray[0]}")
    if bad := [name for name, weight in tensors.items() if not torch.isfinite(weight).all()]:
        raise UserError(f"the adapter holds numbers that are not finite: {bad[0]}")
    if not any(bool(weight.any()) for name, weight in tensors.items() if "lora_B" in name):
        raise UserError("nothing was learned: every lora_B is zero")


def _plain(value: object) -> object:
    """Convert a value for JSON; sets become sorted lists, so that the file does not depend on the hash seed."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


def load_adapter(model: nn.Module, folder: Path, parts: ModelParts = LLAVA) -> PeftModel:
    """Load an adapter as it is read for merging; no tensor may be missing or unexpected.

    So an adapter computes the same here, however its names and targets are spelled, as long as it can be merged. peft
    alone would leave out tensors whose names it does not know. The tensors say which modules have LoRA.
    Raises UserError also for an adapter that changes the frozen part, or holds numbers that are not finite.
    """
    if not (folder / CONFIG).exists() and (folder / "config.json").is_file():
        raise UserError(f"{folder} is no adapter folder but a full model: a base (model.checkpoint) and not a source")
    adapter = move_names(open_adapter(folder), parts.moves)
    tensors = {name: adapter.file.get(stored) for name, stored in adapter.written_names.items()}
    if astray := sorted(name for name in tensors if parts.frozen in name):
        raise UserError(f"the adapter {folder} must leave the {parts.title} alone, but holds {astray[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = get_peft_model(model, _peft_config(adapter))
            set_peft_model_state_dict(loaded, tensors)
        except (ValueError, RuntimeError) as error:  # modules that the model lacks, shapes of another model
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"the adapter {folder} does not fit this model: {reason}") from error
    state = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    if tensors.keys() != state.keys():
        raise UserError(
            f"the adapter {folder} does not fit this model: missing {sorted(state.keys() - tensors.keys())[:3]}, "
            f"not understood {sorted(tensors.keys() - state.keys())[:3]}"
        )
    if bad := [name for name, weight in state.items() if not torch.isfinite(weight).all()]:
        raise UserError(f"the adapter {folder} holds numbers that are not finite: {bad[0]}")
    return loaded.eval()


def _peft_config(adapter: Adapter) -> LoraConfig:
    """The config by which peft puts an adapter on the modules of which there are tensors, and on no other."""
    config = adapter.config
    taken = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "bias", "ensure_weight_tying")
    saved = config.get("modules_to_save") or []
    biases = ".bias" if config.get("bias", "none") != "none" else "no bias"
    others = [x for x in adapter.extras if not x.endswith(biases) and not any(f".{m}." in f".{x}" for m in saved)]
    return LoraConfig(
        **{key: config[key] for key in taken if config.get(key) is not None},
        **{key: anchor_patterns(config[key]) for key in PATTERNS},
        modules_to_save=[*saved, *sorted({name.rpartition(".")[0] for name in others})] or None,
        target_modules=list(adapter.modules),
        base_model_name_or_path=adapter.config.get("base_model_name_or_path"),
        inference_mode=True,
    )


def list_changed_weights(model: PeftModel, names: Iterable[str]) -> list[str]:
    """List those of the base model's tensors `names` that merging the adapter may change."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    changed = {name.removeprefix(PREFIX).split(".lora_")[0] for name in state}  # modules, or whole saved tensors
    return [name for name in names if name in changed or name.rpartition(".")[0] in changed]


def open_fitting_delta(weights: Mapping[str, Tensor], folder: Path, parts: ModelParts = LLAVA) -> Delta:
    """Open a delta folder and check that all its tensors fit the model. weights: the model's state dict.

    Raises UserError for a tensor that the model lacks or has in another shape, that belongs to the frozen part, or
    whose weight is tied to another one.
    """
    delta = open_delta(folder)
    shapes = dict(zip(delta.parameters, map(delta.file.shape, delta.file.names), strict=True))
    if astray := [name for name in shapes if parts.frozen in name]:
        raise UserError(f"the delta {folder} must leave the {parts.title} alone, but holds {astray[0]}")
    if unknown := [name for name in shapes if name not in weights]:
        raise UserError(f"the delta {folder} does not fit this model: not understood {unknown[:3]}")
    if odd := [name for name, shape in shapes.items() if shape != tuple(weights[name].shape)]:
        shape, expected = list(shapes[odd[0]]), list(weights[odd[0]].shape)
        raise UserError(f"the delta {folder} does not fit this model: {odd[0]} is {shape} there, {expected} here")
    memory = {weights[name].data_ptr(): name for name in shapes}
    if tied := [name for name, weight in weights.items() if memory.get(weight.data_ptr(), name) != name]:
        other = memory[weights[tied[0]].data_ptr()]
        raise UserError(f"the delta {folder} cannot change {other} alone: this model has one weight for {tied[0]} too")
    return delta


@torch.no_grad()
def add_delta(weights: Mapping[str, Tensor], delta: Delta) -> None:
    """Add the delta to the model's weights in place, one at a time, summing in float32.

    Raises UserError, with some weights already changed, for values that are not finite or do not fit the dtype.
    """
    for name, kind, tensor in delta.changes():
        weight = weights[name]
        if not all_finite(tensor):
            raise UserError(f"the delta {delta.folder} holds numbers that are not finite: {name}")
        new = tensor.to(weight.device, torch.float32) if kind == "add" else tensor.to(weight.device)
        new = (new + weight if kind == "add" else new).to(weight.dtype)
        if not all_finite(new):
            raise UserError(
                f"the delta {delta.folder} cannot be merged into the base: {name} does not fit {weight.dtype}"
            )
        weight.copy_(new)
