"""Writing of PEFT adapters, to a folder or in memory: all have scaling 1, their alpha is always their rank."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from robustmerge.formats.adapter import LoraPair, name_in_file
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS, config_for
from robustmerge.formats.layer_kinds import LINEAR, LayerKind
from robustmerge.formats.names import PREFIX
from robustmerge.formats.tensors import TensorWriter, header_room, refuse_overflow
from robustmerge.stage.files import FolderWriter
from robustmerge.stage.settings import UserError

SMALL = 2.0**-9  # a factor whose largest value is below it has many below 2^-14, where a half loses digits


class AdapterBuilder(ABC):
    """What an adapter of scaling 1 is made of, taken update by update: its tensors, ranks and config.

    like: the config of an expert, whose base model and targets the new adapter has. kinds: of the layers that are not
    linear, by module. A subclass says where tensors go, and what to set where these are too large for their dtype
    (`wider`).
    """

    wider = "merge.out.dtype=float32"

    def __init__(self, like: Mapping[str, Any], dtype: torch.dtype, kinds: Mapping[str, LayerKind] | None = None):
        self.like, self.dtype, self._kinds = like, dtype, kinds or {}
        self.ranks: dict[str, int] = {}
        self._parts: list[str] = []  # what every module has

    @abstractmethod
    def put(self, key: str, tensor: Tensor) -> None:
        """Take a tensor by its name in a file."""

    @property
    def config(self) -> dict[str, Any]:
        """The adapter's config, once all updates are there."""
        return config_for(self.ranks, self.like, "magnitude" in self._parts, "bias" in self._parts)

    def add_update(
        self, module: str, update: LoraPair | Tensor, magnitude: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Write a module's update. Raises UserError if it is dense, or a value is too large for the dtype."""
        if not isinstance(update, LoraPair):
            raise UserError(
                f"module '{module}': a dense update {list(update.shape)} is no adapter; give the rank to cut it to "
                "(merge.out.rank), or take merge.out.format=delta"
            )
        self.add_pair(module, update, magnitude=magnitude, bias=bias)

    def add_pair(
        self, module: str, pair: LoraPair, magnitude: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Write a module's update; magnitude [d_out] (DoRA) or bias [d_out] (lora_bias) for all modules or none.

        Raises UserError if a value is too large for the dtype.
        """
        pair = balance(pair) if self.dtype == torch.float16 else pair
        tensors = {"A": pair.A, "B": pair.B, "bias": bias, "magnitude": magnitude}
        parts = {part: x for part, x in tensors.items() if x is not None}
        if self.ranks and list(parts) != self._parts:
            raise ValueError(f"module '{module}' has {', '.join(parts)}, those before have {', '.join(self._parts)}")
        self.ranks[module], self._parts = pair.rank, list(parts)
        kind = self._kinds.get(module, LINEAR)
        for part, x in parts.items():
            shaped = x.to(self.dtype).reshape(kind.shape_in_file(part, x.shape))
            self._add(f"{PREFIX}{module}.{kind.name_in_file(part)}", shaped, f"module '{module}'")

    def add_extra(self, name: str, tensor: Tensor) -> None:
        """Write a trained value of the base model, by its name there; after all pairs."""
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        self._add(name_in_file(name, self.ranks), tensor, f"'{name}'")

    def _add(self, key: str, tensor: Tensor, what: str) -> None:
        refuse_overflow(tensor, what, self.wider)
        self.put(key, tensor)


def balance(pair: LoraPair) -> LoraPair:
    """The same update, exactly, from A and B of about one size where one of them is too small for a half precision.

    That is a B into which a small alpha/r was folded: a power of two moves to it from A.
    """
    sizes = [float(x.abs().max()) if x.numel() else 0.0 for x in (pair.A, pair.B)]
    if not 0 < min(sizes) < SMALL or not math.isfinite(max(sizes)):
        return pair
    by = 2.0 ** round(math.log2(sizes[0] / sizes[1]) / 2)
    return LoraPair(pair.A / by, pair.B * by)


class AdapterWriter(AdapterBuilder, FolderWriter):
    """Context manager that writes an adapter folder pair by pair; it appears when the block ends without an error.

    names: at least those that the tensors will have, for the header's size.
    """

    def __init__(
        self,
        folder: Path,
        like: Mapping[str, Any],
        names: Iterable[str],
        dtype: torch.dtype = torch.float32,
        card: str = "",
        kinds: Mapping[str, LayerKind] | None = None,
    ):
        AdapterBuilder.__init__(self, like, dtype, kinds)
        self.card = card
        self._tensors = TensorWriter(folder / WEIGHTS, header_room(names))
        FolderWriter.__init__(self, folder, [self._tensors])

    def put(self, key: str, tensor: Tensor) -> None:
        """Write a tensor."""
        self._tensors.add(key, tensor)

    def complete(self) -> dict[str, str | bytes]:
        return {"README.md": self.card, CONFIG: json.dumps(self.config, indent=2, sort_keys=True) + "\n"}


class AdapterInMemory(AdapterBuilder):
    """Context manager that keeps an adapter in memory. tensors: by their names in a file."""

    wider = "dtype='float32'"

    def __enter__(self) -> Self:
        self.ranks, self._parts = {}, []
        self.tensors: dict[str, Tensor] = {}
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor."""
        self.tensors[key] = tensor
