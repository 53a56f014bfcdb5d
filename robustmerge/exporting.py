"""A source as a whole model: the base with an adapter or dense deltas in its weights, for programs that know neither.

The checkpoint is streamed, as a merge to a full model is; the base alone is linked to and not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustmerge.adapter import open_adapter
from robustmerge.checkpoints import SMALL, find_model, open_checkpoint
from robustmerge.deltas import CONFIG as DELTA_CONFIG
from robustmerge.deltas import Delta, open_delta
from robustmerge.models import NOT_COPIED, ModelWriter
from robustmerge.whole_files import write_atomically

CARD = "# A full model\n\nThe base model {base}{source}. Written for programs that load whole models only.\n"


def export_model(base: Path | str, source: Path | None, folder: Path) -> None:
    """Write config, tokenizer and weights of base + source to `folder`. source: adapter or delta folder, None: no one.

    Raises UserError, before anything is written, with all that does not fit the base.
    """
    place = find_model(base)
    card = CARD.format(base=base, source=f" with the updates of {source}" if source else "")
    if source is None:
        _link_base(place, folder, card)
    elif (Path(source) / DELTA_CONFIG).is_file():
        _write_delta(place, open_delta(Path(source)), folder, card)
    else:
        _write_adapter(place, Path(source), folder, card)


def _link_base(base: Path, folder: Path, card: str) -> None:
    """Links to the weights, copies of the rest, so that the copies can be changed."""
    checkpoint = open_checkpoint(base)
    folder.mkdir(parents=True, exist_ok=True)
    small = {file for pattern in SMALL for file in base.glob(pattern) if file.is_file() and file.name not in NOT_COPIED}
    for file in sorted(small, key=lambda file: (file.name == "config.json", file.name)):
        write_atomically(folder / file.name, file.read_bytes())
    for tensors in checkpoint.files.values():
        link = folder / tensors.path.name
        link.unlink(missing_ok=True)
        link.symlink_to(tensors.path.resolve())
    write_atomically(folder / "README.md", card)


def _write_adapter(base: Path, source: Path, folder: Path, card: str) -> None:
    adapter = open_adapter(source)
    with ModelWriter(folder, base, [adapter], card) as writer:
        for module in adapter.modules:
            magnitude, bias = adapter.magnitude(module), adapter.bias(module)
            writer.add_update(module, adapter.pair(module), magnitude=magnitude, bias=bias)
        for extra in adapter.extras:
            writer.add_extra(extra, adapter.extra(extra))


def _write_delta(base: Path, delta: Delta, folder: Path, card: str) -> None:
    with ModelWriter(folder, base, [DeltaLayout(delta)], card) as writer:
        for parameter, kind, tensor in delta.changes():  # by name, so `add` before `set`, as the writer wants them
            if kind == "add":
                writer.add_update(parameter.removesuffix(".weight"), tensor.float())
            else:
                writer.add_extra(parameter, tensor)


@dataclass(frozen=True)
class DeltaLayout:
    """Of a delta, what a ModelWriter asks of the experts. Every tensor has the shape of its parameter."""

    delta: Delta
    config: Mapping[str, Any] = field(default_factory=dict)
    has_lora_bias: bool = False

    def _shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        start = f"{kind}."
        names = [name for name in self.delta.file.names if name.startswith(start)]
        return {name.removeprefix(start): tuple(self.delta.file.shape(name)) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Module -> (rows, 0, columns): a dense update has no rank."""
        return {name.removesuffix(".weight"): (d[0], 0, d[1]) for name, d in self._shapes("add").items()}

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(sorted(self._shapes("set")))

    def extra_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes("set")[name]
