"""Reading and writing of PEFT adapter folders.

Reading folds alpha/r (rsLoRA: alpha/sqrt(r)) into B, so that the update of a pair is B @ A and nothing else;
writing gives adapters of scaling 1, whose alpha is always their rank. An adapter with anything in it that is not read
here is refused: never a wrong one in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from robustmerge.formats.adapter_config import (
    CONFIG,
    config_for,
    find_unsupported,
    rank_of,
    read_config,
    resolve_patterns,
    saved_modules,
    scaling_of,
)
from robustmerge.formats.tensors import TensorFile, TensorWriter, all_finite, header_room, refuse_overflow
from robustmerge.stage.files import write_atomically
from robustmerge.stage.settings import UserError, first_few

WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."
# part of a module -> its name in the file; A and B are always there, magnitude with DoRA, bias with lora_bias
PARTS = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}
_SPELLINGS = {  # what follows `.lora_` in a name -> part
    "A.weight": "A",
    "A.default.weight": "A",
    "B.weight": "B",
    "B.default.weight": "B",
    "B.bias": "bias",
    "B.default.bias": "bias",
    "magnitude_vector": "magnitude",
    "magnitude_vector.weight": "magnitude",
    "magnitude_vector.default": "magnitude",
    "magnitude_vector.default.weight": "magnitude",
}


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update B @ A of one linear layer. A: [r, d_in], B: [d_out, r], alpha/r included in B.

    Raises UserError if they are no pair.
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.dim() != 2 or self.B.dim() != 2 or self.A.shape[0] != self.B.shape[1]:
            shapes = f"A {list(self.A.shape)} and B {list(self.B.shape)}"
            raise UserError(f"a pair is A [rank, d_in] and B [d_out, rank] of one rank, got {shapes}")

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def delta(self) -> Tensor:
        """The dense update [d_out, d_in]."""
        return self.B @ self.A


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, opened and checked; tensors are read on demand.

    shapes: module -> (d_out, rank, d_in). lora: module -> part (A, B, bias, magnitude) -> name in the file.
    extra_names: the trained values of the base model (`modules_to_save`, `bias`), name in the model -> in the file.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    file: TensorFile = field(repr=False)
    shapes: Mapping[str, tuple[int, int, int]] = field(repr=False)
    lora: Mapping[str, Mapping[str, str]] = field(repr=False)
    extra_names: Mapping[str, str] = field(repr=False)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.shapes))

    @property
    def ranks(self) -> dict[str, int]:
        return {module: shape[1] for module, shape in self.shapes.items()}

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(sorted(self.extra_names))

    @property
    def is_dora(self) -> bool:
        """Whether every module has a magnitude: W' = m (W + BA) / ||W + BA||, https://arxiv.org/abs/2402.09353."""
        return bool(self.config.get("use_dora"))

    @property
    def has_lora_bias(self) -> bool:
        """Whether every module's update has a bias: x -> B A x + b."""
        return bool(self.config.get("lora_bias"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The smallest dtype that holds every A and B."""
        return common_dtype({self.file.dtype(parts[part]) for parts in self.lora.values() for part in "AB"})

    def pair(self, module: str) -> LoraPair:
        """The pair of one module in float32, its scaling folded into B."""
        return LoraPair(self._part(module, "A"), self._part(module, "B", self._scaling(module)))

    def magnitude(self, module: str) -> Tensor | None:
        """DoRA's magnitude m of one module in float32 [d_out]; None for an adapter without.

        Raises UserError if a value is not finite; the same holds for `bias`.
        """
        return self._finite(module, "magnitude") if self.is_dora else None

    def bias(self, module: str) -> Tensor | None:
        """The bias of the update (lora_bias) in float32 [d_out], scaled as B is; None for an adapter without."""
        return self._finite(module, "bias") * self._scaling(module) if self.has_lora_bias else None

    def extra(self, name: str) -> Tensor:
        return self.file.get(self.extra_names[name])

    def extra_shape(self, name: str) -> tuple[int, ...]:
        return self.file.shape(self.extra_names[name])

    def _part(self, module: str, part: str, scaling: float = 1.0) -> Tensor:
        x = self.file.get(self.lora[module][part])
        if scaling == 1:
            return x.float()
        return x * scaling if x.dtype == torch.float32 else x.float().mul_(scaling)  # never in the file's own memory

    def _finite(self, module: str, part: str) -> Tensor:
        x = self._part(module, part)
        if not all_finite(x):
            raise UserError(f"expert '{self.name}', module '{module}': {PARTS[part]} holds NaN or infinity")
        return x

    def _scaling(self, module: str) -> float:
        return scaling_of(self.config, module, self.shapes[module][1])


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all values of the given dtypes."""
    dtypes = sorted(set(dtypes), key=str)
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return common


def open_adapter(folder: Path | str, name: str | None = None) -> Adapter:
    """Open an adapter folder. name: how messages call it, by default the folder's name.

    Raises UserError with all reasons why it cannot be read as LoRA of linear layers.
    """
    folder = Path(folder)
    name = name or folder.name
    config = read_config(folder, name)
    file = open_tensors(folder, name)
    modules = {stored.removeprefix(PREFIX).rpartition(".lora_")[0] for stored in file.names if ".lora_" in stored}
    config = resolve_patterns(config, sorted(modules), f"expert '{name}' ({folder}): ")
    contents = classify_names(file, config)
    problems = [*find_unsupported(config, contents.lora), *first_few(contents.problems)]
    if (folder / "non_lora_trainables.bin").exists():
        problems.append("non_lora_trainables.bin must be converted to modules_to_save first; it would be lost")
    if problems:
        raise UserError("\n".join(f"expert '{name}' ({folder}): {problem}" for problem in problems))
    shapes = {}
    for module, parts in contents.lora.items():
        (rank, d_in), d_out = file.shape(parts["A"]), file.shape(parts["B"])[0]
        shapes[module] = (d_out, rank, d_in)
    return Adapter(name, folder, config, file, shapes, contents.lora, contents.extras)


def open_adapters(folders: Mapping[str, Path | str]) -> tuple[list[Adapter], list[str]]:
    """Open adapter folders (name -> folder); returns those that open, sorted by name, and the problems of the rest."""
    adapters, problems = [], []
    for name, folder in sorted(folders.items()):
        try:
            adapters.append(open_adapter(folder, name))
        except UserError as error:
            problems.append(str(error))
    return adapters, problems


def open_tensors(folder: Path, name: str) -> TensorFile:
    """Open the tensor file of an adapter folder of any kind. Raises UserError if there is none that can be read."""
    for file in (folder / WEIGHTS, folder / "adapter_model.bin"):
        if file.is_file():
            break
    else:
        names = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"expert '{name}': {folder} has no {WEIGHTS} and no adapter_model.bin; it has {names}")
    try:
        return TensorFile(file)
    except UserError as error:
        raise UserError(f"expert '{name}': {error}") from error


class AdapterWriter:
    """Context manager that writes an adapter folder pair by pair; it appears when the block ends without an error.

    like: an expert, whose base model, targets and modules the new adapter has.
    """

    def __init__(self, folder: Path, like: Adapter, dtype: torch.dtype = torch.float32, card: str = ""):
        self.folder, self.like, self.dtype, self.card = folder, like.config, dtype, card
        self.ranks: dict[str, int] = {}
        self._parts: list[str] = []  # what every module has
        self._tensors = TensorWriter(folder / WEIGHTS, header_room(like.file.names))

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tensors.__enter__()
        return self

    def add_pair(
        self, module: str, pair: LoraPair, magnitude: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Write a module's update; magnitude [d_out] (DoRA) or bias [d_out] (lora_bias) for all modules or none.

        Raises UserError if a value is too large for the dtype.
        """
        tensors = {"A": pair.A, "B": pair.B, "bias": bias, "magnitude": magnitude}
        parts = {part: x for part, x in tensors.items() if x is not None}
        if self.ranks and list(parts) != self._parts:
            raise ValueError(f"module '{module}' has {', '.join(parts)}, those before have {', '.join(self._parts)}")
        self.ranks[module], self._parts = pair.rank, list(parts)
        for part, x in parts.items():
            self._add(f"{PREFIX}{module}.{PARTS[part]}", x.to(self.dtype), f"module '{module}'")

    def add_extra(self, name: str, tensor: Tensor) -> None:
        """Write a trained value of the base model, by its name there; after all pairs."""
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        self._add(name_in_file(name, self.ranks), tensor, f"'{name}'")

    def _add(self, key: str, tensor: Tensor, what: str) -> None:
        refuse_overflow(tensor, what)
        self._tensors.add(key, tensor)

    def __exit__(self, *raised: Any) -> None:
        self._tensors.__exit__(*raised)
        if raised[0] is None:
            write_atomically(self.folder / "README.md", self.card)
            config = config_for(self.ranks, self.like, "magnitude" in self._parts, "bias" in self._parts)
            write_atomically(self.folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


@dataclass
class Contents:
    """Contents of an adapter file. lora: module -> part -> name in the file. extras: name in the model -> in the file.

    problems: why it cannot be merged; empty if all of it is understood.
    """

    lora: dict[str, dict[str, str]] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def classify_names(file: TensorFile, config: Mapping[str, Any]) -> Contents:
    """Sort tensor names into LoRA and trained values of the base (modules_to_save, bias), and check LoRA's shapes."""
    contents = Contents()
    for stored in file.names:
        module, _, spelling = stored.removeprefix(PREFIX).rpartition(".lora_")
        key: str | None
        if module and spelling in _SPELLINGS:
            place, key = contents.lora.setdefault(module, {}), _SPELLINGS[spelling]
        else:
            place, key = contents.extras, _name_in_model(stored.removeprefix(PREFIX), config)
        if not stored.startswith(PREFIX) or key is None:
            contents.problems.append(_not_understood(stored))
        elif key in place:
            contents.problems.append(f"tensors {place[key]} and {stored} are two spellings of one name")
        else:
            place[key] = stored
    if not contents.lora:
        contents.problems.append(f"{file.path.name} holds no LoRA tensors")
    for module, parts in contents.lora.items():
        if problem := _problem_of(parts, file, config, module):
            contents.problems.append(f"module '{module}': {problem}")
    return contents


def name_in_file(extra: str, modules: Mapping[str, Any]) -> str:
    """The name by which peft looks for a trained value of the base; the bias of a LoRA module is its base layer's."""
    module, _, last = extra.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if module in modules else PREFIX + extra


def _name_in_model(name: str, config: Mapping[str, Any]) -> str | None:
    """The name in the base model of a trained value; None if the config does not list it."""
    plain = re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
    if any(re.search(rf"{re.escape(module)}\.", plain) for module in saved_modules(config)):
        inner = re.search(r"\.(base_layer|original_module|lora_\w+)\.", plain)
        return None if inner else plain
    if config.get("bias") in ("all", "lora_only") and plain.endswith(".bias"):
        return plain.replace(".base_layer.bias", ".bias")
    return None


def _not_understood(stored: str) -> str:
    if "lora_embedding_" in stored:
        return f"tensor {stored} is LoRA of an embedding; only linear layers can be merged"
    return f"tensor {stored} is neither lora_A or lora_B of a linear layer nor of modules_to_save"


def _problem_of(parts: Mapping[str, str], file: TensorFile, config: Mapping[str, Any], module: str) -> str | None:
    """Why the tensors of a module are not a pair [r, d_in], [d_out, r] with the further parts that the config lists."""
    if missing := {"A", "B"} - set(parts):
        return f"it has {' and '.join(sorted(PARTS[part] for part in parts))} but no {PARTS[min(missing)]}"
    A, B = file.shape(parts["A"]), file.shape(parts["B"])
    if len(A) != 2 or len(B) != 2:
        return f"only linear layers can be merged, got lora_A {list(A)} and lora_B {list(B)}"
    rank = rank_of(config, module)
    if not A[0] == B[1] == rank:
        return f"the config gives rank {rank}, the tensors are lora_A {list(A)} and lora_B {list(B)}"
    if whole := [parts[part] for part in sorted(parts) if not file.dtype(parts[part]).is_floating_point]:
        return f"{whole[0]} holds {file.dtype(whole[0])}, not floating point numbers"
    for key, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
        if bool(config.get(key)) != (part in parts):
            return f"{key} is {bool(config.get(key))}, but it has {'a' if part in parts else 'no'} {PARTS[part]}"
        if part in parts and file.shape(parts[part]) != (B[0],):
            return f"{PARTS[part]} must have shape {[B[0]]}, got {list(file.shape(parts[part]))}"
    return None
