"""Merging inside a model in memory: adapters of one `peft.PeftModel` become a further adapter of it, without a folder.

    from robustmerge.live import merge_into
    merge_into(model, ["vqa", "rec"], "knots_ties")
    model.set_adapter("merged")

The adapters are read as their folders would be and go through the same merge, so the numbers are those of
`merge_folders`. peft is imported only by functions that are given a model of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustmerge.formats.adapter import Adapter, open_each, read_adapter
from robustmerge.formats.adapter_config import check_config
from robustmerge.formats.adapter_writer import AdapterInMemory
from robustmerge.formats.output import open_in_memory
from robustmerge.formats.tensors import TensorsInMemory
from robustmerge.merge_record import summarize_merge
from robustmerge.merging import Merging, Say, check_together
from robustmerge.method import AnyMethod, FunctionMethod, read_method
from robustmerge.method_parts import DTYPES, Out
from robustmerge.stage.settings import UserError, suggest
from robustmerge.stage.text import quote
from robustmerge.workers import set_up_for_merging

PLACE = Path("the model")  # where messages say that an adapter is


def merge_into(
    model: Any,
    adapters: Sequence[str],
    method: AnyMethod | str,
    name: str = "merged",
    weights: Mapping[str, float] | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    workers: int = 1,
    say: Say = print,
    device: str | None = None,
) -> dict[str, Any]:
    """Merge LoRA adapters of a PeftModel into a new adapter of it, `name`, and return the record of the merge.

    model: unchanged except for the new adapter, which is frozen and not active (`model.set_adapter(name)`).
    adapters: their names in the model; the scaling of each is that of its config, whatever `set_scale` did.
    method: an object, or the name of its file in configs/merge.
    weights, seed: replace the method's own. workers: how many modules are merged side by side, which does not change
    the result.
    dtype: float32, float16, bfloat16, or `experts` for theirs; None: the method's if that is a half precision, else
    theirs. modules_to_save are averaged and get the dtype that the model gives them.
    device: where modules are merged; None: on the GPU that holds the first adapter, or else on the CPU. Each weight is
    placed where the first adapter that has it keeps it.
    Raises UserError with all problems at once, as a merge of folders does; the model is unchanged then.
    """
    method = _settle(method, weights, seed, dtype)
    _check_names(model, adapters, name)
    device = device or _find_device(model, adapters[0])
    with set_up_for_merging(device):
        opened, problems = open_each(adapters, lambda adapter: read_live(model, adapter))
        opened = check_together(opened, problems, method, adapters)
        if biased := [adapter.name for adapter in opened if adapter.config.get("bias", "none") != "none"]:
            raise UserError(
                f"expert '{biased[0]}' trains biases of the base (bias={opened[0].config['bias']}), and a model of "
                "peft has only one such adapter; merge folders (merge_folders)"
            )
        output = open_in_memory(opened, method.out.dtype)
        record = Merging(opened, method, workers, device=device).run(lambda: output)
    _add_adapter(model, name, [adapter.name for adapter in opened], output)
    say(summarize_merge(method, record))
    return record


def _settle(
    method: AnyMethod | str, weights: Mapping[str, float] | None, seed: int | None, dtype: str | None
) -> AnyMethod:
    """The method with these changes. Raises UserError if it does not know them, or gives no adapter."""
    method = read_method(method) if isinstance(method, str) else method
    changes = {"weights": dict(weights) if weights is not None else None, "seed": seed}
    changes = {key: value for key, value in changes.items() if value is not None}
    if changes and isinstance(method, FunctionMethod):
        raise UserError(f"{method.name} is a function, which knows no {' and no '.join(changes)}; see its params")
    if dtype not in (None, *DTYPES):
        raise UserError(f"unknown dtype '{dtype}'; {suggest(str(dtype), DTYPES)}")
    if method.output_format != "adapter":
        why = "its update has full rank" if method.out.format is None else f"its out.format is {method.out.format}"
        raise UserError(
            f"{method.name} gives no adapter, as a model of peft takes it: {why}; cut it to a "
            "rank (merge.out.rank; in Python read_method(..., out__rank=16)), or merge folders (merge_folders)"
        )
    if method.out.for_ is not None:
        raise UserError(f"{method.name} is written for {method.out.for_} (out.for), which takes folders: merge_folders")
    usual = "experts" if method.out.dtype == Out().dtype else method.out.dtype
    return replace(method, **changes, out=replace(method.out, dtype=dtype or usual))  # type: ignore[arg-type]


def _check_names(model: Any, adapters: Sequence[str], name: str) -> None:
    """Raises UserError unless `adapters` are in the model, a PeftModel, and `name` may become one."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UserError(f"the model must be a peft.PeftModel, got {type(model).__name__}")
    if isinstance(adapters, str) or not adapters:
        raise UserError(f"adapters must be a list of names of adapters in the model, got {adapters!r}")
    known = list(model.peft_config)
    problems = [f"the model has no adapter '{one}'; {suggest(one, known)}" for one in adapters if one not in known]
    problems += [f"adapter '{one}' is named twice" for one in dict.fromkeys(adapters) if list(adapters).count(one) > 1]
    if name in known:
        problems.append(f"the model has an adapter '{name}' already; give another name, or delete_adapter('{name}')")
    elif not name or "." in name:
        problems.append(f"peft takes no adapter named '{name}': a name has a character, and no dot")
    if problems:
        raise UserError("\n".join(problems))


def _find_device(model: Any, adapter: str) -> str:
    """The GPU where the first LoRA of an adapter is; cpu for any other kind of device: few of them know float64."""
    lora = re.compile(rf"\.lora_\w+\.{re.escape(adapter)}(\.|$)")
    devices = (parameter.device for name, parameter in model.named_parameters() if lora.search(name))
    return str(next((device for device in devices if device.type == "cuda"), "cpu"))


def read_live(model: Any, name: str) -> Adapter:
    """Read an adapter of a PeftModel, as it would be saved; its tensors are those of the model.

    Weights of the base that peft would save beside it are one for all adapters here, and left out.
    Raises UserError as `read_adapter` does.
    """
    from peft import get_peft_model_state_dict

    config = json.loads(json.dumps(model.peft_config[name].to_dict(), default=sorted))  # sets are lists in a file
    base = model.get_base_model().__dict__.get("name_or_path")
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or base or None
    config = check_config(config, f"expert '{name}' ({PLACE}): ")
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _check_all_read(model, name, tensors)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise UserError(f"expert '{name}' ({PLACE}): its weights are offloaded; load the model with them in memory")
    return read_adapter(name, PLACE, config, TensorsInMemory(PLACE / name, tensors))


def _check_all_read(model: Any, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError if peft has left out LoRA of the adapter, as it does where a module has another one's name."""
    of_this = re.compile(rf"\.lora_\w+\.{re.escape(name)}(\.|$)")
    held = [key for key, _ in model.named_parameters(remove_duplicate=False) if of_this.search(key)]
    if len(held) > sum(".lora_" in key for key in tensors):
        others = [other for other in model.peft_config if other != name and any(f".{other}." in key for key in held)]
        named = f"the adapter {quote(others[0])} is named as a part of a module; load it under another name"
        raise UserError(
            f"expert '{name}' ({PLACE}): peft gives not all of its weights: {named if others else 'merge folders'}"
        )


def _add_adapter(model: Any, name: str, experts: Sequence[str], merged: AdapterInMemory) -> None:
    """Add the merged adapter to the model, each weight where the first expert that has it keeps it.

    Raises UserError if a tensor has no place.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    with torch.random.fork_rng(devices=[]):  # peft draws values that are replaced at once
        model.add_adapter(name, LoraConfig.from_peft_type(**merged.config))
    try:
        parameters = dict(model.named_parameters())
        of_merged = re.compile(rf"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\.){re.escape(name)}(?=\.|$)")
        for key, parameter in parameters.items():
            if match := of_merged.search(key):
                twins = (f"{key[: match.end(1)]}{expert}{key[match.end() :]}" for expert in experts)
                twin = next(parameters[twin] for twin in twins if twin in parameters)
                parameter.data = parameter.data.to(twin.device, merged.dtype)
        result = set_peft_model_state_dict(model, merged.tensors, adapter_name=name)
        if lost := result.unexpected_keys:
            raise UserError(
                f"the model has no place for {lost[0]}: its modules have other names than its adapters say, as a "
                "wrapper gives them; merge before the model is wrapped (torch.compile, FSDP)"
            )
    except BaseException:
        model.delete_adapter(name)
        raise
