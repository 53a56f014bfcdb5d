"""A base model that takes the adapter or the dense deltas of one source after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_ext.adapters import ModelParts, add_delta, list_changed_weights, load_adapter, open_fitting_delta
from robustmerge.formats.adapter_config import DELTA_CONFIG
from robustmerge.stage.settings import UserError


class SourceModel(ABC):
    """A base model: alone, or with the adapter or dense deltas of a source.

    These are merged into the weights, and the weights that they change are restored from a copy before the next source,
    so the answers of a source do not depend on the sources before it.
    """

    def __init__(self, parts: ModelParts):
        self.parts = parts
        self.model: Any = self.load()
        self.originals: dict[str, Tensor] = {}  # of the weights that the source in use changes

    @abstractmethod
    def load(self) -> Any:
        """Load the base model, without gradients."""

    def use(self, source: Path | None) -> None:
        """Answer with this adapter folder or delta folder from now on; None for the base alone.

        Raises UserError if the folder is neither, or not of this model.
        """
        self._restore()
        if source is None:
            return
        merge = self._merge_delta if (Path(source) / DELTA_CONFIG).is_file() else self._merge_adapter
        try:
            merge(Path(source))
        except BaseException:
            self.model, self.originals = self.load(), {}  # a half-merged model never answers
            raise
        self.model.eval().requires_grad_(False)

    def _merge_adapter(self, adapter: Path) -> None:
        weights = self.model.state_dict()
        loaded = load_adapter(self.model, adapter, self.parts)
        self.originals = {name: weights[name].clone() for name in list_changed_weights(loaded, weights)}
        try:
            self.model = loaded.merge_and_unload(safe_merge=True)
        except ValueError as error:  # peft: a merged weight is not finite
            raise UserError(f"the adapter {adapter} cannot be merged into the base: {error}") from error

    def _merge_delta(self, folder: Path) -> None:
        weights = self.model.state_dict()
        delta = open_fitting_delta(weights, folder, self.parts)
        self.originals = {name: weights[name].clone() for name in delta.parameters}
        add_delta(weights, delta)

    @torch.no_grad()
    def _restore(self) -> None:
        weights = self.model.state_dict()
        for name, weight in self.originals.items():
            weights[name].copy_(weight)
        self.originals = {}
