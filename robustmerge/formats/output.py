"""Output formats of a merge: a PEFT adapter, dense deltas, or a full model, by writers with one interface."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from robustmerge.formats.adapter import Adapter, common_dtype
from robustmerge.formats.adapter_config import CONFIG, SAME_BASE
from robustmerge.formats.adapter_writer import AdapterInMemory, AdapterWriter
from robustmerge.formats.checkpoint import TIED, explain_unknown_layout, ties_embeddings
from robustmerge.formats.compatibility import unite
from robustmerge.formats.delta import DeltaWriter, explain_delta_limit
from robustmerge.formats.full_model import ModelWriter
from robustmerge.formats.layer_kinds import LINEAR
from robustmerge.formats.names import PARTS, read_model_config
from robustmerge.formats.serving import BASE, HERE, config_for_server, serve_command, served_rank
from robustmerge.formats.tensors import TensorFile, TensorWriter, header_room
from robustmerge.hub.places import fetch_model
from robustmerge.stage.files import remove
from robustmerge.stage.settings import UserError

BASE_CARD = "# The base model of the adapter beside it\n\nWith the values that the experts trained in full in it.\n"


class ServedOutput(AdapterWriter):
    """Context manager that writes an adapter as servers take it, and with it, in `base`, a base model if need be.

    All modules get one rank, padded with zeros, which changes no sum. It is known when the last module is there, so all
    are kept in a file until then. What was trained in full replaces the values of the base.
    """

    def __init__(
        self, folder: Path, like: Adapter, dtype: torch.dtype, card: str, server: str, base: str | Path | None
    ):
        names = [*like.written_names, *like.extras]
        super().__init__(folder, like.config, names, dtype, card)
        self._like, self._server, self._named = like, server, str(served_base(base, [like]))
        self._padded = self._tensors
        self._tensors = TensorWriter(folder / "unpadded.safetensors", header_room(names))
        self._base: ModelWriter | None = None
        if like.extras:
            alone = replace(like, shapes={}, config={})
            place = fetch_model(base or base_of(like))
            self._base = ModelWriter(folder / BASE, place, alone, BASE_CARD)

    def __enter__(self) -> Self:
        super().__enter__()
        self._opened.callback(remove, self._tensors.path)
        self._opened.callback(self._tensors.__enter__().drop)
        return self

    def add_extra(self, name: str, tensor: Tensor) -> None:
        """Keep a trained value, which goes into the base, in its own dtype."""
        self._tensors.add(name, tensor)

    def complete(self) -> dict[str, str | bytes]:
        """Write the padded tensors and the base, and return the small files."""
        self._tensors.finish()
        self._tensors.publish()
        kept = TensorFile(self._tensors.path)
        rank = served_rank(max(self.ranks.values()))
        for name in kept.names:
            if name not in self._like.extra_names:
                self._padded.add(name, _pad(kept.get(name), 0 if name.endswith(PARTS["A"]) else 1, rank))
        self.ranks = dict.fromkeys(self.ranks, rank)
        if self._base is not None:
            with self._base:
                for name in self._like.extras:
                    self._base.add_extra(name, kept.get(name))
        config = config_for_server(rank, sorted(self.ranks), self.like, self._base is not None)
        base = Path(self._named).name if os.path.isdir(self._named) else self._named
        card = f"{self.card}\n```bash\n{serve_command(self._server, base, rank, HERE, 'merged')}\n```\n"
        return {"README.md": card, CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n"}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except BaseException:
            remove(self.folder / BASE)
            raise


def _pad(tensor: Tensor, axis: int, length: int) -> Tensor:
    """The tensor with zeros behind it, so that it has this length along the axis."""
    shape = list(tensor.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


def open_writer(
    folder: Path,
    kind: str,
    adapters: Sequence[Adapter],
    card: str,
    dtype: str = "float32",
    base: str | Path | None = None,
    server: str | None = None,
) -> AdapterWriter | DeltaWriter | ModelWriter:
    """Open the writer of a format, a context manager with `add_update`, `add_extra` and `ranks`.

    kind: adapter, delta or model. adapters: the experts, of which the first names the base.
    dtype: a name, or `experts` for theirs. base: of a model, a folder or hub id; None: the one that the experts name.
    server: of formats.serving, for which an adapter is written; its base is used if anything was trained in full.
    Raises UserError with all problems at once, before anything is written.
    """
    if problems := [*problems_of_format(kind, adapters), *problems_of_serving(server, adapters, base)]:
        raise UserError("\n".join(problems))
    like = unite(adapters)
    if kind == "model":
        return ModelWriter(folder, fetch_model(base or base_of(like)), like, card)
    written = find_dtype(dtype, adapters)
    if kind == "adapter":
        if server is not None:
            return ServedOutput(folder, like, written, card, server, base)
        names = like.written_names if like.renamed else like.file.names
        return AdapterWriter(folder, like.config, names, written, card, like.kinds)
    return DeltaWriter(folder, like, written, card)


def open_in_memory(adapters: Sequence[Adapter], dtype: str) -> AdapterInMemory:
    """Open the writer of an adapter that stays in memory; the arguments are those of `open_writer`."""
    like = unite(adapters)
    return AdapterInMemory(like.config, find_dtype(dtype, adapters), like.kinds)


def find_dtype(name: str, adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype of a name; `experts`: the smallest that holds all that they trained, whole layers included."""
    if name != "experts":
        return getattr(torch, name)
    trained = (a.file.dtype(key) for a in adapters for key in a.written_names.values())
    return common_dtype(dtype for dtype in trained if dtype.is_floating_point)


def problems_of_format(kind: str, adapters: Sequence[Adapter]) -> list[str]:
    """Problems of writing the merge of these experts in a format, found before anything is merged."""
    if kind != "delta":
        return []
    unfit = [(a.name, dora) for dora in (True, False) for a in adapters if (a.is_dora if dora else a.has_lora_bias)]
    problems = [f"expert '{name}': {explain_delta_limit(dora)}" for name, dora in unfit]
    like = unite(adapters)
    model = read_model_config(like.config)
    fan_in_fan_out = bool(like.config.get("fan_in_fan_out"))
    if reason := explain_unknown_layout(fan_in_fan_out, like.linear_shapes, model, is_compared=False):
        problems.append(f"expert '{adapters[0].name}': {reason}")
    changed = [name for a in adapters for name in (*(f"{module}.weight" for module in a.modules), *a.extras)]
    tied = sorted(set(filter(TIED.search, changed)))
    if tied and any(ties_embeddings(read_model_config(a.config)) for a in adapters):
        problems.append(
            f"'{tied[0]}' is one weight with another in the base (tie_word_embeddings), and a delta would change both; "
            "take merge.out.format=adapter"
        )
    elif tied and ties_embeddings(model) is None:
        base = like.config.get("base_model_name_or_path")
        problems.append(
            f"'{tied[0]}' may be one weight with another in the base {base}, which no config.json there tells "
            "(tie_word_embeddings), and a delta would change both; take merge.out.format=adapter or model"
        )
    module, (d_out, _, d_in) = max(like.shapes.items(), key=lambda item: item[1][0] * item[1][2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * d_out * d_in > memory:
        problems.append(
            f"module '{module}' is {d_out} x {d_in}: its dense update takes {4 * d_out * d_in / 1e9:.0f} GB, and this "
            f"machine has {memory / 1e9:.0f} GB of memory; take merge.out.format=adapter"
        )
    return problems


def problems_of_serving(server: str | None, adapters: Sequence[Adapter], base: str | Path | None) -> list[str]:
    """Problems of an adapter for a server (None: for none) made of these experts, found before anything is merged."""
    if server is None:
        return []
    way = "take merge.out.format=model without merge.out.for: the server takes the full model"
    problems = [
        f"expert '{adapter.name}' has {what}, and {server} serves plain LoRA alone; {way}"
        for adapter in adapters
        for what, is_there in (("DoRA", adapter.is_dora), ("lora_bias", adapter.has_lora_bias))
        if is_there
    ]
    kinds = unite(adapters).kinds
    if others := sorted(module for module, kind in kinds.items() if kind != LINEAR):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        what = f"'{others[0]}' ({kinds[others[0]]}){more} with LoRA"
        problems.append(f"the experts have {what}, and {server} serves it of linear layers in every model; {way}")
    if (extras := adapters[0].extras) and not (base or base_of(adapters[0])):
        more = f" and {len(extras) - 1} more" if len(extras) > 1 else ""
        problems.append(
            f"the experts trained '{extras[0]}'{more} in full, which no adapter for {server} holds: give the base that "
            f"it is written into, merge.out.base=FOLDER; or {way}"
        )
    return problems


def served_base(base: str | Path | None, adapters: Sequence[Adapter]) -> str:
    """The base that a server needs for the merge of these experts: the one beside it, if there is one."""
    return f"{HERE}/{BASE}" if adapters[0].extras else str(base or base_of(adapters[0]) or "BASE")


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
