"""Checkpoints of base models: their files, their tensors, and the names of these in a model in memory."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.names import LLAVA, QWEN_VL, Moves, move, moves_of_model
from robustmerge.formats.tensors import TensorFile
from robustmerge.stage.files import check_file_name, read_json
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

HEADS = ("lm_head.weight", "embed_out.weight")
TIED = re.compile(
    r"(^|\.)(lm_head|embed_out|embed_tokens|embed_in|wte|word_embeddings|tok_embeddings|shared|predictions\.decoder)\.weight$"
)
# the models of transformers whose layers keep their weights as [d_in, d_out]
CONV1D = ("clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk. files: file name as it is written again -> its tensors; config: of config.json."""

    folder: Path
    files: Mapping[str, TensorFile] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def where(self) -> dict[str, str]:
        """Tensor -> the file that holds it."""
        return {name: file for file, tensors in self.files.items() for name in tensors.names}

    @cached_property
    def today(self) -> dict[str, str]:
        """Name that today's transformers give a tensor -> its name here, where that is one."""
        today = [(move(name, self._moves), name) for name in self.where]
        count = Counter(name for name, _ in today)
        return {name: stored for name, stored in today if count[name] == 1}

    @cached_property
    def _moves(self) -> Moves:
        """Checkpoints on the hub keep names of before, which transformers change on loading."""
        is_qwen = any(name.startswith("visual.") for name in self.where)
        return moves_of_model(self.config) or (QWEN_VL if is_qwen else LLAVA)

    @cached_property
    def is_tied(self) -> bool:
        """Whether output head and embeddings are one weight; older checkpoints say so by leaving the head out."""
        return bool(ties_embeddings(self.config)) or not any(name in self.today for name in HEADS)

    def get(self, name: str) -> Tensor:
        return self.files[self.where[name]].get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[self.where[name]].shape(name)

    def find(self, parameter: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        """The tensor that the model in memory calls `parameter`, which takes values of this shape and dtype.

        Raises UserError unless it is there and fits.
        """
        if self.is_tied and TIED.search(parameter):
            raise UserError(
                f"'{parameter}' cannot be changed in the base {self}: its output head and its embeddings are one "
                "weight (tie_word_embeddings); take merge.out.format=adapter"
            )
        name = self._name_of(parameter)
        if name is None:
            raise UserError(
                f"the base {self} has no tensor '{parameter}' (the nearest is '{self._nearest(parameter)}')"
            )
        file = self.files[self.where[name]]
        if file.shape(name) != shape:
            raise UserError(f"'{parameter}' is {list(shape)} in the experts, {list(file.shape(name))} in {self}")
        if dtype.is_floating_point and not file.dtype(name).is_floating_point:
            raise UserError(
                f"'{parameter}' is {file.dtype(name)} in {self}: a quantised base cannot hold what was trained"
            )
        return name

    def _name_of(self, parameter: str) -> str | None:
        """Find a parameter's tensor here: by the same name, by its old name, or with or without the name's first part.

        A model with a head has a first part (`transformer.`) that the same model without one lacks. It must be the same
        for all layers, so that a part of another model, such as its vision tower, is never taken for the whole.
        """
        if parameter in self.where:
            return parameter
        if (name := self.today.get(move(parameter, self._moves))) is not None:
            return name
        first, _, inner = parameter.partition(".")
        if inner in self.where and first not in self._first_parts:
            return inner
        layers = {first for first, has_layers in self._first_parts.items() if has_layers}
        outer = f"{min(layers)}.{parameter}" if len(layers) == 1 else ""
        return outer if outer in self.where else None

    @cached_property
    def _first_parts(self) -> dict[str, bool]:
        """First part of the names -> whether it has layers, which are numbered."""
        parts: dict[str, bool] = {}
        for name in self.where:
            first, _, inner = name.partition(".")
            parts[first] = parts.get(first, False) or any(part.isdigit() for part in inner.split("."))
        return parts

    def _nearest(self, parameter: str) -> str:
        ending = parameter.rsplit(".", 2)[-2:]
        alike = [name for name in self.where if name.rsplit(".", 2)[-2:] == ending] or list(self.where)
        return difflib.get_close_matches(parameter, alike[:200], n=1, cutoff=0)[0]


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether output head and embeddings are one weight by a model's config.json; None if it does not say.

    Each kind of model has a default of its own.
    """
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    said = [part["tie_word_embeddings"] for part in parts if part.get("tie_word_embeddings") is not None]
    return any(said) if said else None


def explain_unknown_layout(
    fan_in_fan_out: bool, shapes: Mapping[str, tuple[int, int, int]], config: Mapping[str, Any], is_compared: bool
) -> str | None:
    """Why it cannot be told whether weights are [d_out, d_in] or [d_in, d_out]; None where it can.

    shapes: module -> (d_out, rank, d_in), of linear layers. config: config.json of the base. is_compared: whether the
    shapes are compared with the base's. PEFT decides by each module's class and saves in its config what the last one
    was; a shape that is not square tells it as well, but not that of a head, which is [d_out, d_in] in every model.
    """
    model_type = config.get("model_type")
    inner = [shape for module, shape in shapes.items() if not TIED.search(f"{module}.weight")]
    if not inner or fan_in_fan_out == (model_type in CONV1D):
        return None
    are_square = all(d_out == d_in for d_out, _, d_in in inner)
    if not are_square and (is_compared or model_type is None):
        return None
    why = "all modules are square: no shape says" if are_square else "a delta is made without its weights: nothing says"
    return (
        f"fan_in_fan_out is {str(fan_in_fan_out).lower()}, but the model_type of the base is {quote(model_type)}, and "
        f"{why} whether its weights are transposed; take merge.out.format=adapter"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the weights of a model folder.

    Raises UserError as `find_weight_files` does, or if a file cannot be read, a tensor is in two files, or one that
    the index lists is in none.
    """
    parts = _find_parts(folder)
    files: dict[str, TensorFile] = {}
    holders: dict[str, Path] = {}
    for path in parts:
        if (name := _written_name(path)) in files:
            raise UserError(f"{path} and {files[name].path.name} would both be written as {name}; rename one of them")
        files[name] = TensorFile(path)
        for tensor in files[name].names:
            if tensor in holders:
                raise UserError(f"{folder}: tensor '{tensor}' is in {holders[tensor].name} and again in {path.name}")
            holders[tensor] = path
    if missing := sorted({tensor for listed in parts.values() for tensor in listed} - set(holders)):
        raise UserError(f"{folder} is incomplete: its index lists {quote(missing[0])}, which is in none of its files")
    if scaled := [name for file in files.values() for name in file.float8]:
        raise UserError(
            f"{folder} holds '{scaled[0]}' in float8, whose scale is not read; take the base in bfloat16, or "
            "merge.out.format=adapter"
        )
    config = folder / "config.json"
    return Checkpoint(folder, files, read_json(config, "the config of a model") if config.is_file() else {})


def find_weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder: safetensors before .bin, whole or in the parts that an index names.

    Raises UserError if there are none, a part is not there, or the index names anything but weight files beside it.
    Source of the order: `from_pretrained` of transformers.
    """
    return list(_find_parts(folder))


def _find_parts(folder: Path) -> dict[Path, list[str]]:
    """Weight file -> the tensors in it by the index; none for a whole file."""
    config = folder / "config.json"
    if config.is_file() and (name := read_json(config, "the config of a model").get("transformers_weights")):
        raise UserError(f"{config} names other weights (transformers_weights {quote(name)}), which are not read")
    for whole in WEIGHTS:
        if os.path.lexists(folder / whole):
            return {folder / whole: []}
        if os.path.lexists(index := folder / f"{whole}.index.json"):
            return _read_index(index)
    names = ", ".join(sorted(file.name for file in folder.iterdir())) if folder.is_dir() else ""
    raise UserError(f"{folder} is no model folder: it has neither {' nor '.join(WEIGHTS)}; it has {names or 'nothing'}")


def _read_index(index: Path) -> dict[Path, list[str]]:
    where = read_json(index, "the index of a checkpoint").get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(
            f"{index} is no index of a checkpoint: weight_map must map tensors to files, got {quote(where)}"
        )
    parts: dict[Path, list[str]] = {}
    for tensor, name in where.items():
        entry = f"{index}: weight_map[{quote(tensor)}]"
        path = index.parent / check_file_name(name, entry)
        if path.suffix not in SUFFIXES:
            raise UserError(f"{entry} must be a file of the kind {' or '.join(SUFFIXES)}, got {quote(name)}")
        parts.setdefault(path, []).append(tensor)
    if missing := sorted(path.name for path in parts if not path.is_file()):
        raise UserError(f"{index.parent} is incomplete: {index.name} names {missing[0]}, which is not there")
    return dict(sorted(parts.items()))


def _written_name(path: Path) -> str:
    """The name of a weight file where it is written again, as safetensors."""
    return path.name if path.suffix == ".safetensors" else path.stem.replace("pytorch_model", "model") + ".safetensors"
