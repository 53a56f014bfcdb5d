"""Delta folders: dense updates to a base model, for merges that no low-rank adapter holds exactly.

`delta.safetensors` holds `add.<parameter>`, to be added to that parameter of the model in memory, and
`set.<parameter>`, the value that it takes (the averaged `modules_to_save`). Every tensor has the shape of its
parameter. `delta_config.json` names the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.adapter import Adapter, LoraPair
from robustmerge.formats.adapter_config import DELTA_CONFIG, SAME_BASE
from robustmerge.formats.tensors import SlotWriter, TensorFile, refuse_overflow
from robustmerge.stage.files import FolderWriter, read_json
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

WEIGHTS = "delta.safetensors"
FORMAT = 1
KINDS = ("add", "set")


@dataclass(frozen=True)
class Delta:
    """An opened delta folder; tensors are read on demand."""

    folder: Path
    config: Mapping[str, Any]
    file: TensorFile = field(repr=False)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of the base model that this delta changes."""
        return tuple(name.partition(".")[2] for name in self.file.names)

    def changes(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield the changes one by one: (parameter, add or set, tensor)."""
        for name in self.file.names:
            kind, _, parameter = name.partition(".")
            yield parameter, kind, self.file.get(name)


def open_delta(folder: Path) -> Delta:
    """Open a delta folder. Raises UserError if it is not one, its format is unknown, or a tensor is no such update."""
    if not (folder / DELTA_CONFIG).exists():
        raise UserError(f"{folder} is no delta folder: it has no {DELTA_CONFIG}")
    config = read_json(folder / DELTA_CONFIG, "the config of a delta folder")
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / DELTA_CONFIG}: format must be {FORMAT}, got {quote(config.get('format'))}")
    file = TensorFile(folder / WEIGHTS)
    problems = []
    for name in file.names:
        kind, _, parameter = name.partition(".")
        if kind not in KINDS or not parameter:
            problems.append(f"{file.path}: a name begins with 'add.' or 'set.', got {name}")
        elif kind == "add" and not (_is_update(file, name) and name.endswith(".weight")):
            shape = f"{list(file.shape(name))} of {file.dtype(name)}"
            what = "a matrix, or a convolution's kernels, of floats"
            problems.append(f"{file.path}: {name} must be the update of a .weight, {what}, got {shape}")
    if problems:
        raise UserError("\n".join(first_few(problems)))
    return Delta(folder, config, file)


def _is_update(file: TensorFile, name: str) -> bool:
    return 2 <= len(file.shape(name)) <= 5 and all(file.shape(name)) and file.dtype(name).is_floating_point


def dense(update: LoraPair | Tensor, is_transposed: bool) -> Tensor:
    """The update as the values of the weight: [d_out, d_in], or its transpose."""
    whole = update.delta() if isinstance(update, LoraPair) else update
    return whole.T if is_transposed else whole


class DeltaWriter(FolderWriter):
    """Context manager that writes a delta folder module by module; it appears when the block ends without an error."""

    def __init__(self, folder: Path, like: Adapter, dtype: torch.dtype, card: str):
        self.dtype, self.card = dtype, card
        self.ranks: dict[str, int] = {}  # a dense update has none
        self._like = like
        self._config = {"format": FORMAT, **{key: like.config.get(key) for key in SAME_BASE}}
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for module in like.modules:
            layout[f"add.{module}.weight"] = dtype, like.weight_shape(module)
        for extra in like.extras:
            tensor = like.extra(extra)
            layout[f"set.{extra}"] = dtype if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape)
        self._tensors = SlotWriter(folder / WEIGHTS, layout)
        super().__init__(folder, [self._tensors])

    def add_update(
        self, module: str, update: LoraPair | Tensor, magnitude: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """update: a pair, or dense [d_out, d_in]. Raises UserError if a value is too large for the dtype."""
        values = dense(update, self._like.is_transposed(module)).to(self.dtype)
        self._put(f"add.{module}.weight", values.reshape(self._like.weight_shape(module)), f"module '{module}'")

    def add_extra(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of modules_to_save. Raises UserError if a value is too large for the dtype."""
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        self._put(f"set.{name}", tensor, f"'{name}'")

    def _put(self, name: str, tensor: Tensor, what: str) -> None:
        refuse_overflow(tensor, what)
        self._tensors.put(name, tensor)

    def complete(self) -> dict[str, str | bytes]:
        return {"README.md": self.card, DELTA_CONFIG: json.dumps(self._config, indent=2, sort_keys=True) + "\n"}


def explain_delta_limit(dora: bool) -> str:
    """The message that a delta cannot hold DoRA (or else lora_bias), and what to do."""
    why = "DoRA rescales the base's weights" if dora else "lora_bias adds to biases that the base may not have"
    return f"{why}, and a delta only adds to its weights; take merge.out.format=adapter or model"
