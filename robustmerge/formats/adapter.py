"""Reading of PEFT adapter folders.

Reading folds alpha/r (rsLoRA: alpha/sqrt(r)) into B, so that the update of a pair is B @ A and nothing else. An adapter
with anything in it that is not understood here is refused, so that none is silently read wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustmerge.formats.adapter_config import (
    PATTERNS,
    WEIGHT_FILES,
    find_unsupported,
    find_weights,
    read_config,
    resolve_patterns,
    scaling_of,
)
from robustmerge.formats.adapter_contents import classify_names, find_resized, find_tied, lacks_projector
from robustmerge.formats.layer_kinds import LINEAR, LayerKind
from robustmerge.formats.llava.names import LLAVA_CONFIG, PROJECTOR
from robustmerge.formats.names import (
    ALL_MOVES,
    CLIP,
    PARTS,
    PREFIX,
    QWEN_VL,
    Moves,
    find_moves,
    is_text_encoder,
    move,
    parse_names,
    stack_of,
)
from robustmerge.formats.tensors import TensorFile, Tensors, all_finite
from robustmerge.stage.files import require_file
from robustmerge.stage.settings import UserError, first_few

T = TypeVar("T")


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update B @ A of one layer. A: [r, d_in], B: [d_out, r], alpha/r included in B.

    How it lies in the layer's weight: `robustmerge.formats.layer_kinds`.

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

    def to(self, device: str | torch.device) -> LoraPair:
        """The pair on a device."""
        return LoraPair(self.A.to(device), self.B.to(device))


@dataclass(frozen=True)
class Adapter:
    """An adapter, opened and checked; tensors are read on demand, from a file or from a model in memory.

    shapes: module -> (d_out, rank, d_in). kinds: module -> kind of layer.
    lora: module -> part (A, B, bias, magnitude) -> name in the file.
    extra_names: the trained values of the base model (`modules_to_save`, `bias`), name in the model -> in the file.
    frozen: the same for weights of the base that peft saved beside LoRA. renamed: whether modules have other names here
    than in the file. rank_pattern and alpha_pattern of the config are by the modules' whole names, as they are here.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    file: Tensors = field(repr=False)
    shapes: Mapping[str, tuple[int, int, int]] = field(repr=False)
    kinds: Mapping[str, LayerKind] = field(repr=False)
    lora: Mapping[str, Mapping[str, str]] = field(repr=False)
    extra_names: Mapping[str, str] = field(repr=False)
    frozen: Mapping[str, str] = field(repr=False)
    renamed: bool = False

    @cached_property
    def modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.shapes))

    @cached_property
    def ranks(self) -> dict[str, int]:
        return {module: shape[1] for module, shape in self.shapes.items()}

    @cached_property
    def extras(self) -> tuple[str, ...]:
        return tuple(sorted(self.extra_names))

    @property
    def written_names(self) -> dict[str, str]:
        """The names that the tensors have in a file that is written -> those in this one."""
        lora = {
            f"{PREFIX}{module}.{self.kinds[module].name_in_file(part)}": name
            for module, parts in self.lora.items()
            for part, name in parts.items()
        }
        return lora | {name_in_file(extra, self.shapes): name for extra, name in self.extra_names.items()}

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
        A, B = self._part(module, "A"), self._part(module, "B", self._scaling(module))
        return LoraPair(A.flatten(1), B.flatten(1))

    def magnitude(self, module: str) -> Tensor | None:
        """DoRA's magnitude m of one module in float32 [d_out]; None for an adapter without.

        Raises UserError if a value is not finite; the same holds for `bias`.
        """
        return self._finite(module, "magnitude").flatten() if self.is_dora else None

    def bias(self, module: str) -> Tensor | None:
        """The bias of the update (lora_bias) in float32 [d_out], scaled as B is; None for an adapter without."""
        return self._finite(module, "bias") * self._scaling(module) if self.has_lora_bias else None

    def is_transposed(self, module: str) -> bool:
        """Whether the module keeps its weight as [d_in, d_out]."""
        return self.kinds[module].is_transposed(bool(self.config.get("fan_in_fan_out")))

    def weight_shape(self, module: str) -> tuple[int, ...]:
        """The shape of the module's weight."""
        d_out, _, d_in = self.shapes[module]
        return self.kinds[module].weight_shape(d_out, d_in, self.is_transposed(module))

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int, int]]:
        """The shapes of the linear layers."""
        return {module: shape for module, shape in self.shapes.items() if self.kinds[module] == LINEAR}

    def extra(self, name: str) -> Tensor:
        return self.file.get(self.extra_names[name])

    def extra_shape(self, name: str) -> tuple[int, ...]:
        return self.file.shape(self.extra_names[name])

    def extra_dtype(self, name: str) -> torch.dtype:
        return self.file.dtype(self.extra_names[name])

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

    Raises UserError with all reasons why it cannot be read as LoRA.
    """
    folder = Path(folder)
    name = name or folder.name
    adapter = read_adapter(name, folder, read_config(folder, name), open_tensors(folder, name))
    names = (*adapter.shapes, *adapter.extras)
    may_move = any(move(path, moves) != path for path in names for moves in ALL_MOVES)
    return move_names(adapter, find_moves(adapter.config)) if may_move else adapter


def read_adapter(name: str, folder: Path, config: Mapping[str, Any], file: Tensors) -> Adapter:
    """Read an adapter from its checked config (`check_config`) and its tensors, wherever these are.

    folder: where the adapter is, also for messages. Modules keep the names that they have there.
    Raises UserError with all reasons why it cannot be read as LoRA.
    """
    names = parse_names(file.names, config)
    places = {said.path: said.place for said in names.parsed.values() if said.part}
    config = resolve_patterns(config, sorted(set(places.values())), f"expert '{name}' ({folder}): ")
    for key in PATTERNS:
        config[key] = {module: config[key][place] for module, place in places.items() if place in config[key]}
    contents = classify_names(file, config, names)
    problems = [*find_unsupported(config, contents.lora), *first_few(contents.problems)]
    if (folder / PROJECTOR).exists():
        problems.append(
            f"{PROJECTOR} must be converted to modules_to_save first; it would be lost: "
            "robustmerge convert FOLDER -o OUT"
        )
    elif lacks_projector(folder, config, contents):
        problems.append(
            f"it is a checkpoint of LLaVA's own trainer, without the projector: {PROJECTOR} and {LLAVA_CONFIG} "
            "are in the folder where the training ended; take that one, and convert it to PEFT's format"
        )
    problems += find_resized(config, contents, file)
    problems += find_tied(config, contents.kinds)
    if problems:
        raise UserError("\n".join(f"expert '{name}' ({folder}): {problem}" for problem in problems))
    shapes = {}
    for module, parts in contents.lora.items():
        (rank, *d_in), d_out = file.shape(parts["A"]), file.shape(parts["B"])[0]
        shapes[module] = (d_out, rank, math.prod(d_in))
    renamed = any(not parts["A"].startswith(f"{PREFIX}{module}.lora_") for module, parts in contents.lora.items())
    kinds, lora, extras, frozen = contents.kinds, contents.lora, contents.extras, contents.frozen
    return Adapter(name, folder, config, file, shapes, kinds, lora, extras, frozen, renamed)


def move_names(adapter: Adapter, moves: Moves) -> Adapter:
    """The adapter with the names of today's transformers. Raises UserError if two names become one."""
    today: dict[str, str] = {}

    def moved(names: Mapping[str, T]) -> dict[str, T]:
        for name in names:
            if today.setdefault(new := move(name, moves), name) != name:
                raise UserError(
                    f"expert '{adapter.name}' ({adapter.folder}): '{today[new]}' and '{name}' are names of before and "
                    f"of today for one module, '{new}'"
                )
        return {move(name, moves): value for name, value in names.items()}

    saved = adapter.config.get("modules_to_save") or []
    saved = [name if move(name, moves).endswith(name) else move(name, moves) for name in saved]  # the end of a name
    patterns = {key: {move(name, moves): value for name, value in adapter.config[key].items()} for key in PATTERNS}
    return replace(
        adapter,
        config={**adapter.config, "modules_to_save": saved or None, **patterns},
        shapes=moved(adapter.shapes),
        kinds=moved(adapter.kinds),
        lora=moved(adapter.lora),
        extra_names=moved(adapter.extra_names),
        frozen={move(name, moves): stored for name, stored in adapter.frozen.items()},
        renamed=adapter.renamed or any(move(module, moves) != module for module in adapter.shapes),
    )


def open_adapters(folders: Mapping[str, Path | str]) -> tuple[list[Adapter], list[str]]:
    """Open adapter folders (name -> folder); returns those that open, sorted by name, and the problems of the rest."""
    adapters, problems = open_each(folders, lambda name: open_adapter(folders[name], name))
    return _align_names(adapters), problems


def open_each(names: Iterable[str], open_one: Callable[[str], Adapter]) -> tuple[list[Adapter], list[str]]:
    """Call `open_one` for the names, sorted; returns the adapters that open, and the problems of the rest."""
    adapters, problems = [], []
    for name in sorted(names):
        try:
            adapters.append(open_one(name))
        except UserError as error:
            problems.append(str(error))
    return adapters, problems


def _align_names(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Give experts today's names where other experts have these for the same modules or stacks of layers.

    The old names of a Qwen-VL are those of any Llama, so there the base must be the same too; those of CLIP's image
    encoder are those of its text encoder, so adapters that name the latter are left alone.
    """

    def stacks(adapter: Adapter) -> set[str]:
        return {stack_of(module) for module in adapter.shapes}

    def has_other_names(adapter: Adapter, moves: Moves) -> bool:
        if moves is CLIP and is_text_encoder(adapter.config):
            return False
        bases = [adapter.config.get("base_model_name_or_path")] if moves is QWEN_VL else []
        return any(
            (not bases or other.config.get("base_model_name_or_path") in bases)
            and (
                any(module not in other.shapes and move(module, moves) in other.shapes for module in adapter.shapes)
                or any(stack not in stacks(other) and move(stack, moves) in stacks(other) for stack in stacks(adapter))
            )
            for other in adapters
        )

    aligned = list(adapters)
    for moves in ALL_MOVES:
        aligned = [move_names(adapter, moves) if has_other_names(adapter, moves) else adapter for adapter in aligned]
    return aligned


def open_tensors(folder: Path, name: str) -> TensorFile:
    """Open the tensor file of an adapter folder of any kind. Raises UserError if there is none that can be read."""
    if (file := find_weights(folder)) is None:
        names = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"expert '{name}': {folder} has no {' and no '.join(WEIGHT_FILES)}; it has {names}")
    try:
        return TensorFile(require_file(file, "the tensors of an adapter"))
    except UserError as error:
        raise UserError(f"expert '{name}': {error}") from error


def name_in_file(extra: str, modules: Mapping[str, Any]) -> str:
    """The name by which peft looks for a trained value of the base; the bias of a LoRA module is its base layer's."""
    module, _, last = extra.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if module in modules else PREFIX + extra
