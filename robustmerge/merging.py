"""The merge stage: folders of experts in, one adapter folder out, module by module.

Experts are opened sorted by name and never held in memory whole: their files are mapped, and one module of all
experts is read, merged and written at a time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from robustmerge.adapter import Adapter, AdapterWriter, LoraPair, common_dtype, open_adapter
from robustmerge.agreement import disagreements
from robustmerge.algebra import EmptyRowsError, Merged, merge_module, refuse_non_finite
from robustmerge.method import Method, OutsideMethod
from robustmerge.runs import Address, run_stage
from robustmerge.settings import UserError, suggest
from robustmerge.spaces import truncate


def merge(
    address: Address,
    method: Method | OutsideMethod,
    experts: Mapping[str, Path],
    say: Callable[[str], None] = print,
) -> Path:
    """Merge the experts (name -> adapter folder) into the adapter folder at `address`, and return its path.

    Raises UserError with all problems at once; nothing is written then.
    """
    return run_stage(address, lambda folder: write_merged(folder, method, experts, say), say)


def write_merged(
    folder: Path, method: Method | OutsideMethod, experts: Mapping[str, Path], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Merge into `folder` and return the record: what went in, what came out, what was left out."""
    adapters = open_experts(experts, method)
    merge_one = choose_merge(method)
    dtype = common_dtype(a.dtype for a in adapters) if method.out.dtype == "experts" else torch.float32
    problems, empty, dropped = [], [], 0
    with AdapterWriter(folder, adapters[0].config, dtype, card_for(method, adapters)) as writer:
        for module in tqdm(adapters[0].modules, desc=f"merge {method.name}", unit="module", disable=None):
            try:
                merged = merge_one([a.name for a in adapters], [a.pair(module) for a in adapters], module)
                writer.add_pair(module, merged.update)
                dropped += merged.dropped
            except EmptyRowsError as error:
                empty += error.rows
            except UserError as error:
                problems.append(str(error))
        for name, mean in _mean_extras(adapters, problems):
            writer.add_extra(name, mean)
        if empty:
            problems.append(str(EmptyRowsError(empty, method.prune.rule)))
        if problems:
            raise UserError("\n".join(problems))
    record = _record(method, adapters, writer.ranks, dropped)
    say(summary_of(method, record))
    return record


def open_experts(experts: Mapping[str, Path], method: Method | OutsideMethod) -> list[Adapter]:
    """Open all experts, sorted by name. Raises UserError if one is refused or they do not fit together."""
    if not experts:
        raise UserError("there are no experts to merge")
    adapters, problems = [], []
    for name, folder in sorted(experts.items()):
        try:
            adapters.append(open_adapter(folder, name))
        except UserError as error:
            problems.append(str(error))
    if not problems:
        problems = [*disagreements(adapters, getattr(method, "needs_equal_ranks", False))]
    for name in getattr(method, "weights", None) or ():
        if name not in experts:
            problems.append(f"weights names an unknown expert '{name}'; {suggest(name, experts)} (merge.weights)")
    if problems:
        raise UserError("\n".join(problems))
    return adapters


def choose_merge(
    method: Method | OutsideMethod,
) -> Callable[[Sequence[str], Sequence[LoraPair], str], Merged]:
    """The function that merges one module: the algebra, or the one that `_target_` names."""
    if isinstance(method, Method):
        return lambda names, pairs, module: merge_module(names, pairs, method, module)
    function = _import(method.target)

    def merge_outside(names: Sequence[str], pairs: Sequence[LoraPair], module: str) -> Merged:
        refuse_non_finite(names, pairs, module)
        update = truncate(function(pairs, **method.params), method.out.rank)
        if isinstance(update, LoraPair) and update.B.shape[0] == pairs[0].B.shape[0]:
            return Merged(update, 0)
        found = type(update).__name__ + (f" {list(update.shape)}" if isinstance(update, Tensor) else "")
        raise UserError(
            f"module '{module}': {method.target} returned {found}; an adapter needs a LoraPair, or the rank to "
            "cut a dense update to (merge.out.rank)"
        )

    return merge_outside


def _import(target: str) -> Callable[..., LoraPair | Tensor]:
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise UserError(f"module '{module}' has no function '{name}' (merge._target_)")
    return function


def _mean_extras(adapters: Sequence[Adapter], problems: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The plain mean of every tensor of modules_to_save, summed in float32, whatever the method and its strength.

    Published code: the same mean, summed in the tensors' own dtype. Counters and the like must be equal instead.
    """
    for name in adapters[0].extras:
        tensors = [a.extra(name) for a in adapters]
        if not tensors[0].is_floating_point():
            if any(not torch.equal(tensors[0], x) for x in tensors[1:]):
                problems.append(f"'{name}' differs between the experts and is not a number that can be averaged")
            yield name, tensors[0]
            continue
        bad = [a.name for a, x in zip(adapters, tensors, strict=True) if not torch.isfinite(x).all()]
        if bad:
            problems.extend(f"expert '{expert}', '{name}' holds NaN or infinity" for expert in bad)
            continue
        total = torch.zeros_like(tensors[0], dtype=torch.float32)
        for x in tensors:
            total += x.float()
        yield name, total / len(tensors)


def _record(
    method: Method | OutsideMethod, adapters: Sequence[Adapter], ranks: Mapping[str, int], dropped: int
) -> dict[str, Any]:
    strength = getattr(method, "strength", None)
    return {
        "experts": [a.name for a in adapters],
        "modules": len(ranks),
        "ranks": sorted(set(ranks.values())),
        "extras": len(adapters[0].extras),
        "dropped_rows": dropped,
        "strength": strength,
        "effective_strength": None if strength is None else method.effective_strength,
    }


def summary_of(method: Method | OutsideMethod, record: Mapping[str, Any]) -> str:
    """What was merged, in one line."""
    told = [f"{record['modules']} modules", "rank " + " and ".join(map(str, record["ranks"]))]
    if record["strength"] is not None:
        times = f" (the update is multiplied by {record['effective_strength']:g})"
        told.append(f"strength {record['strength']:g} in {method.space}{times}")
    if record["extras"]:
        told.append(f"modules_to_save averaged ({record['extras']} tensors)")
    if record["dropped_rows"]:
        told.append(f"{record['dropped_rows']} empty rank rows left out")
    return f"{method.title or method.name}: {len(record['experts'])} experts merged; " + ", ".join(told)


def card_for(method: Method | OutsideMethod, adapters: Sequence[Adapter]) -> str:
    """The README of the adapter folder: what it is and how to load it; the same bytes for the same merge."""
    how = f"strength {method.strength:g} in {method.space}" if isinstance(method, Method) else method.target
    names = ", ".join(a.name for a in adapters)
    paper = f" ({method.paper})" if method.paper else ""
    return (
        "---\nlibrary_name: peft\ntags: [lora, model-merging]\n---\n\n"
        f"# {method.title or method.name} of {len(adapters)} LoRA experts\n\n"
        f"Method: {method.title or method.name}{paper}, {how}.\nExperts: {names}.\n"
        f"Base model: `{adapters[0].config.get('base_model_name_or_path')}`.\n\n"
        "```python\nfrom peft import PeftModel\n\n"
        'model = PeftModel.from_pretrained(base_model, "path/of/this/folder")\n```\n\n'
        "alpha/r is folded into B, so the scaling is 1. All settings are in `manifest.json`.\n"
    )
