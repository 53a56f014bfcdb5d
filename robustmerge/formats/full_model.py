"""Writing of a full model, the base with a merged update in its weights, streamed one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.adapter import Adapter, LoraPair, open_adapter
from robustmerge.formats.adapter_config import CONFIG, DELTA_CONFIG
from robustmerge.formats.checkpoint import WEIGHTS, Checkpoint, explain_unknown_layout, open_checkpoint
from robustmerge.formats.delta import Delta, open_delta
from robustmerge.formats.tensors import SlotWriter, all_finite
from robustmerge.hub.places import SMALL, fetch_model
from robustmerge.stage.files import FolderWriter, write_atomically
from robustmerge.stage.settings import UserError, first_few

NOT_COPIED = ("manifest.json", CONFIG)
INDEX = "model.safetensors.index.json"
MOST = 10  # problems with a base that are looked for

CARD = "# A full model\n\nThe base model {base}{source}. Written for programs that load whole models only.\n"


class ModelWriter(FolderWriter):
    """Context manager that writes a checkpoint with the base's names, dtypes and files; it appears at the block's end.

    like: an expert, whose modules and trained values are changed.
    Raises UserError, before anything is written, with every module that the base does not have.
    """

    def __init__(self, folder: Path, base: Path, like: Adapter | DeltaLayout, card: str):
        self.card = card
        self.ranks: dict[str, int] = {}  # a full weight has none
        self.base = open_checkpoint(base)
        if folder.resolve() == base.resolve():
            raise UserError(f"{folder} is the base model itself; nothing is overwritten (out)")
        self._like = like
        fan_in_fan_out = bool(like.config.get("fan_in_fan_out"))
        if reason := explain_unknown_layout(fan_in_fan_out, like.linear_shapes, self.base.config, is_compared=True):
            raise UserError(f"expert '{like.name}': {reason}")
        self._places = find_places(self.base, like)
        self._extras = set(like.extras)
        self._biases: dict[str, Tensor] = {}
        self._copied = [file for file in _list_small(base) if not file.name.endswith(".index.json")]
        self._writers = {
            name: SlotWriter(folder / name, {key: (file.dtype(key), file.shape(key)) for key in file.names})
            for name, file in self.base.files.items()
        }
        super().__init__(folder, list(self._writers.values()))

    def add_update(
        self, module: str, update: LoraPair | Tensor, magnitude: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Write W + D, or with DoRA m (W + D) / ||W + D|| by rows (equation 5 of https://arxiv.org/abs/2402.09353).

        update: a pair, or dense [d_out, d_in]; magnitude m, bias: [d_out]. Sums are in float32.
        Raises UserError if a value is too large for the dtype of the base.
        """
        is_transposed = self._like.is_transposed(module)

        def change(weight: Tensor) -> Tensor:
            matrix = add_to(weight.to(torch.float32, copy=True).flatten(1), update, is_transposed)
            matrix = matrix if magnitude is None else rescale_rows(matrix, magnitude, is_transposed)
            return matrix.reshape(weight.shape)

        self._change(f"{module}.weight", change)
        if bias is not None and f"{module}.bias" in self._extras:
            self._biases[f"{module}.bias"] = bias  # added to the trained bias when that comes
        elif bias is not None:
            self._change(f"{module}.bias", lambda values: values.float() + bias)

    def add_extra(self, name: str, tensor: Tensor) -> None:
        """Write a trained value in place of the base's, after all updates. Raises UserError if it does not fit."""
        self._change(name, lambda _: tensor + self._biases[name] if name in self._biases else tensor)

    def _change(self, parameter: str, change: Callable[[Tensor], Tensor]) -> None:
        name = self._places[parameter]
        before = self.base.get(name)
        after = change(before).to(before.dtype)
        if not all_finite(after):
            raise UserError(f"'{parameter}': the merged values do not fit {before.dtype}, the dtype of {self.base}")
        self._writers[self.base.where[name]].put(name, after)

    def complete(self) -> dict[str, str | bytes]:
        """Copy from the base what no expert changes; config.json is last, as a folder without it is no model."""
        for file, writer in self._writers.items():
            for name in sorted(writer.missing):
                writer.put(name, self.base.files[file].get(name))
        small: dict[str, str | bytes] = {}
        if list(self._writers) != [WEIGHTS[0]]:  # a file of another name is found by the index only
            size = sum(writer.size for writer in self._writers.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(self.base.where.items()))}
            small[INDEX] = json.dumps(index, indent=2) + "\n"
        return {**small, "README.md": self.card, **{file.name: file.read_bytes() for file in self._copied}}


def _list_small(base: Path) -> list[Path]:
    """The files beside the weights that are copied: config, tokenizer and the like; config.json is last.

    Raises UserError for a link to a file elsewhere, other than the Hub's cache has them: a private file would be
    copied, and perhaps published.
    """
    small = {file for pattern in SMALL for file in base.glob(pattern) if file.is_file() and file.name not in NOT_COPIED}
    inside = (base.resolve(), base.resolve().parent.parent / "blobs")
    for file in small:
        if not any(file.resolve().is_relative_to(folder) for folder in inside):
            raise UserError(f"{file} is a link to {file.resolve()}; it would be copied: put the file itself there")
    return sorted(small, key=lambda file: (file.name == "config.json", file.name))


def add_to(weight: Tensor, update: LoraPair | Tensor, is_transposed: bool) -> Tensor:
    """Add an update to a weight, a matrix, in place, without holding the product of a pair."""
    if isinstance(update, LoraPair):
        left, right = (update.A.T, update.B.T) if is_transposed else (update.B, update.A)
        return weight.addmm_(left, right)
    return weight.add_(update.T if is_transposed else update)


def rescale_rows(weight: Tensor, magnitude: Tensor, is_transposed: bool) -> Tensor:
    """Rescale the rows of [d_out, d_in] (or columns of its transpose) to the lengths `magnitude`, in place."""
    rows = weight.T if is_transposed else weight
    rows.mul_((magnitude / torch.linalg.norm(rows, dim=1)).unsqueeze(1))
    return weight


def find_places(base: Checkpoint, like: Adapter | DeltaLayout) -> dict[str, str]:
    """Map every parameter that an expert like this one changes to its tensor in the checkpoint.

    Raises UserError with all that the base lacks, or has in another shape, or ties to another weight.
    """
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for module, (d_out, _, _) in like.shapes.items():
        wanted[f"{module}.weight"] = like.weight_shape(module), torch.float32
        if like.has_lora_bias:
            wanted[f"{module}.bias"] = (d_out,), torch.float32
    wanted |= {extra: (like.extra_shape(extra), like.extra_dtype(extra)) for extra in like.extras}
    places, problems = {}, []
    for parameter, (shape, dtype) in sorted(wanted.items()):
        try:
            places[parameter] = base.find(parameter, tuple(shape), dtype)
        except UserError as error:
            problems.append(str(error))
        if len(problems) == MOST:
            problems.append("(there may be more)")
            break
    taken: dict[str, str] = {}
    for parameter, name in places.items():
        if name in taken:
            problems.append(f"'{parameter}' and '{taken[name]}' are both tensor '{name}' of the base {base}")
        taken[name] = parameter
    if problems:
        raise UserError("\n".join(first_few(problems, MOST + 1)))
    return places


def export_model(base: Path | str, source: Path | None, folder: Path) -> None:
    """Write base + source as a full model to `folder`. source: an adapter or delta folder; None: the base alone.

    Raises UserError, before anything is written, with all that does not fit the base.
    """
    place = fetch_model(base)
    card = CARD.format(base=base, source=f" with the updates of {source}" if source else "")
    if source is None:
        _link_base(place, folder, card)
    elif (Path(source) / DELTA_CONFIG).is_file():
        _write_delta(place, open_delta(Path(source)), folder, card)
    else:
        _write_adapter(place, Path(source), folder, card)


def _link_base(base: Path, folder: Path, card: str) -> None:
    """Link the weights of the base and copy its other files, so that the copies can be changed."""
    checkpoint, small = open_checkpoint(base), _list_small(base)
    folder.mkdir(parents=True, exist_ok=True)
    for file in small:
        write_atomically(folder / file.name, file.read_bytes())
    for tensors in checkpoint.files.values():
        link = folder / tensors.path.name
        link.unlink(missing_ok=True)
        link.symlink_to(tensors.path.resolve())
    write_atomically(folder / "README.md", card)


def _write_adapter(base: Path, source: Path, folder: Path, card: str) -> None:
    adapter = open_adapter(source)
    with ModelWriter(folder, base, adapter, card) as writer:
        for module in adapter.modules:
            magnitude, bias = adapter.magnitude(module), adapter.bias(module)
            writer.add_update(module, adapter.pair(module), magnitude=magnitude, bias=bias)
        for extra in adapter.extras:
            writer.add_extra(extra, adapter.extra(extra))


def _write_delta(base: Path, delta: Delta, folder: Path, card: str) -> None:
    with ModelWriter(folder, base, DeltaLayout(delta), card) as writer:
        for parameter, kind, tensor in delta.changes():  # by name, so `add` before `set`, as the writer wants them
            if kind == "add":
                writer.add_update(parameter.removesuffix(".weight"), tensor.float().flatten(1))
            else:
                writer.add_extra(parameter, tensor)


@dataclass(frozen=True)
class DeltaLayout:
    """Presents a delta folder to ModelWriter as an expert; every tensor has the shape of its parameter."""

    delta: Delta
    name: str = "delta"
    config: Mapping[str, Any] = field(default_factory=dict)
    linear_shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)  # of an unknown layout: none
    has_lora_bias: bool = False

    def _shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        start = f"{kind}."
        names = [name for name in self.delta.file.names if name.startswith(start)]
        return {name.removeprefix(start): tuple(self.delta.file.shape(name)) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Module -> (rows, 0, columns): a dense update has no rank."""
        added = self._shapes("add").items()
        return {name.removesuffix(".weight"): (rows, 0, math.prod(columns)) for name, (rows, *columns) in added}

    def is_transposed(self, module: str) -> bool:
        return False

    def weight_shape(self, module: str) -> tuple[int, ...]:
        return self._shapes("add")[f"{module}.weight"]

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(sorted(self._shapes("set")))

    def extra_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes("set")[name]

    def extra_dtype(self, name: str) -> torch.dtype:
        return self.delta.file.dtype(f"set.{name}")
