"""Output formats of a merge: a PEFT adapter, dense deltas, or a full model, by writers with one interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustmerge.formats.adapter import Adapter, AdapterInMemory, AdapterWriter, common_dtype
from robustmerge.formats.adapter_config import SAME_BASE
from robustmerge.formats.checkpoint import TIED, explain_unknown_layout, ties_embeddings
from robustmerge.formats.compatibility import unite
from robustmerge.formats.delta import DeltaWriter, explain_delta_limit
from robustmerge.formats.full_model import ModelWriter
from robustmerge.formats.names import read_model_config
from robustmerge.hub.places import fetch_model
from robustmerge.stage.settings import UserError


def open_writer(
    folder: Path,
    kind: str,
    adapters: Sequence[Adapter],
    card: str,
    dtype: str = "float32",
    base: str | Path | None = None,
) -> AdapterWriter | DeltaWriter | ModelWriter:
    """Open the writer of a format, a context manager with `add_update`, `add_extra` and `ranks`.

    kind: adapter, delta or model. adapters: the experts, of which the first names the base.
    dtype: a name, or `experts` for theirs. base: of a model, a folder or hub id; None: the one that the experts name.
    Raises UserError with all problems at once, before anything is written.
    """
    if problems := problems_of_format(kind, adapters):
        raise UserError("\n".join(problems))
    like = unite(adapters)
    if kind == "model":
        return ModelWriter(folder, fetch_model(base or base_of(like)), like, card)
    written = find_dtype(dtype, adapters)
    if kind == "adapter":
        names = like.written_names if like.renamed else like.file.names
        return AdapterWriter(folder, like.config, names, written, card)
    return DeltaWriter(folder, like, written, card)


def open_in_memory(adapters: Sequence[Adapter], dtype: str) -> AdapterInMemory:
    """Open the writer of an adapter that stays in memory; the arguments are those of `open_writer`."""
    return AdapterInMemory(unite(adapters).config, find_dtype(dtype, adapters))


def find_dtype(name: str, adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype of a name; `experts`: the smallest that holds all of theirs."""
    return common_dtype(a.dtype for a in adapters) if name == "experts" else getattr(torch, name)


def problems_of_format(kind: str, adapters: Sequence[Adapter]) -> list[str]:
    """Problems of writing the merge of these experts in a format, found before anything is merged."""
    if kind != "delta":
        return []
    unfit = [(a.name, dora) for dora in (True, False) for a in adapters if (a.is_dora if dora else a.has_lora_bias)]
    problems = [f"expert '{name}': {explain_delta_limit(dora)}" for name, dora in unfit]
    like = unite(adapters)
    model = read_model_config(like.config)
    fan_in_fan_out = bool(like.config.get("fan_in_fan_out"))
    if reason := explain_unknown_layout(fan_in_fan_out, like.shapes, model):
        problems.append(f"expert '{adapters[0].name}': {reason}")
    changed = [name for a in adapters for name in (*(f"{module}.weight" for module in a.modules), *a.extras)]
    tied = sorted(set(filter(TIED.search, changed)))
    if tied and any(ties_embeddings(read_model_config(a.config)) for a in adapters):
        problems.append(
            f"'{tied[0]}' is one weight with another in the base (tie_word_embeddings), and a delta would change both; "
            "take merge.out.format=adapter"
        )
    module, (d_out, _, d_in) = max(like.shapes.items(), key=lambda item: item[1][0] * item[1][2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * d_out * d_in > memory:
        problems.append(
            f"module '{module}' is {d_out} x {d_in}: its dense update takes {4 * d_out * d_in / 1e9:.0f} GB, and this "
            f"machine has {memory / 1e9:.0f} GB of memory; take merge.out.format=adapter"
        )
    return problems


def base_of(adapter: Adapter) -> str | None:
    """The base model that an expert names, with `@revision` where it has one."""
    name, revision = (adapter.config.get(key) for key in SAME_BASE)
    return f"{name}@{revision}" if name and revision and not Path(name).is_dir() else name


def how_to_load(kind: str) -> str:
    """The Python lines, for the card, that load what was written. kind: adapter, delta or model."""
    return LOADING[kind]


LOADING: dict[str, Any] = {
    "adapter": ('from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, "path/of/this/folder")\n'),
    "delta": (
        "from safetensors import safe_open\n\n"
        'with safe_open("path/of/this/folder/delta.safetensors", "pt") as file:\n'
        "    weights = base_model.state_dict()\n"
        "    for name in file.keys():\n"
        '        kind, _, parameter = name.partition(".")\n'
        '        if kind == "add":\n'
        "            weights[parameter] += file.get_tensor(name)\n"
        "        else:\n"
        "            weights[parameter].copy_(file.get_tensor(name))\n"
    ),
    "model": (
        "import transformers\n\n"
        'config = transformers.AutoConfig.from_pretrained("path/of/this/folder")\n'
        "model = getattr(transformers, config.architectures[0])"
        '.from_pretrained("path/of/this/folder", dtype="auto")\n'
    ),
}
