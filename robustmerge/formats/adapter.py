"""Reading of PEFT adapter folders.

Reading folds alpha/r (rsLoRA: alpha/sqrt(r)) into B, so that the update of a pair is B @ A and nothing else. An adapter
with anything in it that is not read here is refused: never a wrong one in silence.
"""

from __future__ import annotations

import math
import re
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
    rank_of,
    read_config,
    resolve_patterns,
    saved_modules,
    scaling_of,
)
from robustmerge.formats.layer_kinds import LINEAR, LayerKind, find_kind
from robustmerge.formats.llava.names import LLAVA_CONFIG, PROJECTOR, is_llava_config
from robustmerge.formats.names import (
    EMBEDDED,
    LLAVA,
    PARTS,
    PREFIX,
    QWEN_VL,
    Moves,
    Names,
    count_tensors,
    find_moves,
    is_saved_whole,
    move,
    parse_names,
    read_model_config,
    show,
    stack_of,
)
from robustmerge.formats.tensors import TensorFile, Tensors, all_finite
from robustmerge.stage.files import read_json, require_file
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


@dataclass(frozen=True)
class Adapter:
    """An adapter, opened and checked; tensors are read on demand, from a file or from a model in memory.

    shapes: module -> (d_out, rank, d_in). kinds: module -> kind of layer.
    lora: module -> part (A, B, bias, magnitude) -> name in the file.
    extra_names: the trained values of the base model (`modules_to_save`, `bias`), name in the model -> in the file.
    frozen: weights of the base that peft saved beside LoRA; likewise. renamed: whether modules have other names here
    than in the file; rank_pattern and alpha_pattern of the config have the names here, whole.
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
    may_move = any(move(path, moves) != path for path in names for moves in (LLAVA, QWEN_VL))
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
    elif _lacks_projector(folder, config, contents):
        problems.append(
            f"it is a checkpoint of LLaVA's own trainer, without the projector: {PROJECTOR} and {LLAVA_CONFIG} "
            "are in the folder where the training ended; take that one, and convert it to PEFT's format"
        )
    problems += _find_resized(config, contents, file)
    problems += _find_tied(config, contents.kinds)
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


def _find_resized(config: Mapping[str, Any], contents: Contents, file: Tensors) -> list[str]:
    """The heads and embeddings with LoRA whose own weights, which are left out, have more rows than the base's."""
    model = read_model_config(config) if contents.frozen else {}
    text = model.get("text_config")
    rows = (text if isinstance(text, dict) else model).get("vocab_size", model.get("vocab_size"))
    embeddings = {f"{module}.weight" for module, kind in contents.kinds.items() if kind.is_embedding}
    return [
        f"'{name}' is {list(file.shape(stored))} and the base's vocabulary {rows}: it was resized, and LoRA alone "
        "does not hold the new rows; train it whole (modules_to_save)"
        for name, stored in contents.frozen.items()
        if (name in embeddings or re.search(r"(^|\.)(lm_head|embed_out)\.weight$", name)) and isinstance(rows, int)
        if file.shape(stored)[:1] != (rows,)
    ]


def _find_tied(config: Mapping[str, Any], kinds: Mapping[str, LayerKind]) -> list[str]:
    """LoRA that is one for an embedding and the head: the head's A and B are the embedding's B and A, transposed.

    Merged apart, the two would differ, and peft, which loads both into one memory, would keep the last.
    """
    embeddings = [module for module, kind in kinds.items() if kind.is_embedding]
    if not config.get("ensure_weight_tying") or not embeddings:
        return []
    return [
        f"ensure_weight_tying makes the LoRA of '{show(embeddings[0])}' that of the output head too, which cannot be "
        "merged; train without it, or the embeddings whole (modules_to_save)"
    ]


def _lacks_projector(folder: Path, config: Mapping[str, Any], contents: Contents) -> bool:
    """Whether a folder holds the LoRA of a LLaVA by LLaVA's own code and no projector, which its trainer always trains.

    The names are those of a Llama; the base, or a config.json of LLaVA's code, says that it is none.
    """
    if not contents.lora or any("projector" in name for name in contents.extras):
        return False
    if not all(re.match(r"model\.layers\.\d+\.", module) for module in contents.lora):
        return False
    base = str(config.get("base_model_name_or_path")).rstrip("/")
    if re.search(r"(?i)(^|[-_])llava([-_.]|$)", base.rpartition("/")[2]):
        return True
    beside = folder / LLAVA_CONFIG
    configs = [read_model_config(config), read_json(beside, "the config of a model") if beside.is_file() else {}]
    return any(map(is_llava_config, configs))


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
    """Bring experts to the names of today that others beside them have, for the same modules or stacks of layers.

    Names of before of a Qwen-VL are those of any Llama, so there the base must be the same too.
    """

    def stacks(adapter: Adapter) -> set[str]:
        return {stack_of(module) for module in adapter.shapes}

    def has_other_names(adapter: Adapter, moves: Moves) -> bool:
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
    for moves in (LLAVA, QWEN_VL):
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


@dataclass
class Contents:
    """Contents of an adapter file. lora: module -> part -> name in the file. extras: name in the model -> in the file.

    kinds: module -> kind of layer. frozen: weights of the base that peft saved beside LoRA, name in the model -> in the
    file. problems: why it cannot be merged; empty if all of it is understood.
    """

    lora: dict[str, dict[str, str]] = field(default_factory=dict)
    kinds: dict[str, LayerKind] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_GATHER = (
    "DeepSpeed ZeRO-3 leaves that behind where the weights were not gathered; save again with "
    "stage3_gather_16bit_weights_on_model_save, or make the checkpoint whole with zero_to_fp32.py"
)
BIASES = ("all", "lora_only")  # settings of peft's `bias` by which biases of the base are trained
_INNER = re.compile(r"(^|\.)(base_layer|original_module|modules_to_save|lora_\w+)(\.|$)")  # words of peft


def classify_names(file: Tensors, config: Mapping[str, Any], names: Names) -> Contents:
    """Sort tensor names into LoRA and trained values of the base (modules_to_save, bias), and check LoRA's shapes.

    config: whose patterns have the names of modules. names: what those of the file say.
    """
    if not file.names:
        return Contents(problems=[f"{file.path.name} holds no tensors; {_GATHER}"])
    contents = Contents(problems=list(names.problems))
    others = {}
    for stored, said in names.parsed.items():
        if said.part is None or _INNER.search(said.path):
            others[stored] = said.path
            continue
        _put(contents.lora.setdefault(said.path, {}), said.part, stored, contents.problems)
    for module, parts in contents.lora.items():
        if {"A", "B"} <= set(parts) and (kind := find_kind(parts, file.shape(parts["A"]), file.shape(parts["B"]))):
            contents.kinds[module] = kind
    _classify_others(others, file, config, contents)
    if empty := [name for name in file.names if 0 in file.shape(name)]:
        shape = list(file.shape(empty[0]))
        contents.problems.append(f"{count_tensors(empty)} empty, of shape {shape}; {_GATHER}")
        return contents
    if not contents.lora:
        contents.problems.append(f"{file.path.name} holds no LoRA tensors")
    for module, parts in contents.lora.items():
        if problem := _problem_of(parts, contents.kinds.get(module), file, config, module):
            contents.problems.append(f"module '{show(module)}': {problem}")
    return contents


def _put(names: dict[str, str], key: str, stored: str, problems: list[str]) -> None:
    """Note the name in the file of a part or a tensor, of which there can be only one."""
    if (other := names.setdefault(key, stored)) != stored:
        problems.append(f"tensors {show(other)} and {show(stored)} are two spellings of one name")


def _classify_others(others: Mapping[str, str], file: Tensors, config: Mapping[str, Any], contents: Contents) -> None:
    """Sort what is not LoRA. others: name in the file -> in the model, which may have peft's own words in it."""
    listed = [f"{module}." for module in saved_modules(config)]  # peft compares the end of a module's name
    weights = {path.replace(".base_layer.", ".") for path in others.values()}
    originals: dict[str, str] = {}
    unknown = []
    for stored, path in others.items():
        plain = path.replace(".modules_to_save.", ".")
        outer = plain.replace(".base_layer.", ".")
        module, _, last = outer.rpartition(".")
        has_lora, is_bias = module in contents.lora, last == "bias" and not _INNER.search(outer)
        is_vocabulary = is_saved_whole(outer) or contents.kinds.get(module, LINEAR).is_embedding
        if any(module in plain for module in listed) or (is_saved_whole(plain) and not has_lora):
            if ".original_module." in plain:
                originals[stored] = plain.replace(".original_module.", ".")
            elif _INNER.search(plain):
                unknown.append(stored)
            elif plain not in contents.extras or not _are_equal(file, contents.extras[plain], stored):
                _put(contents.extras, plain, stored, contents.problems)
        elif is_bias and (config.get("bias") == "all" and plain == outer or config.get("bias") in BIASES and has_lora):
            _put(contents.extras, outer, stored, contents.problems)
        elif has_lora and last in ("weight", "bias") and f"{module}.weight" in weights and is_vocabulary:
            _put(contents.frozen, outer, stored, contents.problems)
        else:
            unknown.append(stored)
    # what a saved module was before training is of no use beside what it is now
    unknown += [stored for stored, plain in originals.items() if plain not in contents.extras]
    if unknown:
        what = "neither lora_A or lora_B of a layer nor of modules_to_save"
        contents.problems.append(f"{count_tensors(unknown)} {what}")


def _are_equal(file: Tensors, one: str, other: str) -> bool:
    """Whether two tensors hold the same: peft saves resized embeddings under each of their names."""
    return file.shape(one) == file.shape(other) and bool(torch.equal(file.get(one), file.get(other)))


def name_in_file(extra: str, modules: Mapping[str, Any]) -> str:
    """The name by which peft looks for a trained value of the base; the bias of a LoRA module is its base layer's."""
    module, _, last = extra.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{last}" if module in modules else PREFIX + extra


def _problem_of(
    parts: Mapping[str, str], kind: LayerKind | None, file: Tensors, config: Mapping[str, Any], module: str
) -> str | None:
    """Why the tensors of a module are no pair of its kind of layer with the further parts that the config lists."""
    if missing := {"A", "B"} - set(parts):
        named = LayerKind(is_embedding=any(f".{EMBEDDED}" in name for name in parts.values()))
        has = " and ".join(sorted(map(named.name_in_file, parts)))
        return f"it has {has} but no {named.name_in_file(min(missing))}"
    A, B = file.shape(parts["A"]), file.shape(parts["B"])
    if kind is None:
        what = f"{show(parts['A'])} {list(A)} and {show(parts['B'])} {list(B)}"
        return f"only linear layers, embeddings and convolutions can be merged, got {what}"
    rank = rank_of(config, module)
    if kind.kernel and A[0] == rank and B[1] < rank and rank % B[1] == 0:
        # every group of outputs reads all inputs through its share of the rank, which no grouped weight can do
        return f"it is a convolution of {rank // B[1]} groups, whose LoRA is no update of its weight; leave it out"
    if not A[0] == B[1] == rank:
        return f"the config gives rank {rank}, the tensors are lora_A {list(A)} and lora_B {list(B)}"
    if whole := [parts[part] for part in sorted(parts) if not file.dtype(parts[part]).is_floating_point]:
        return f"{show(whole[0])} holds {file.dtype(whole[0])}, not floating point numbers"
    for key, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
        if bool(config.get(key)) != (part in parts):
            return f"{key} is {bool(config.get(key))}, but it has {'a' if part in parts else 'no'} {PARTS[part]}"
        if part in parts and file.shape(parts[part]) != (shape := kind.shape_in_file(part, B[:1])):
            return f"{PARTS[part]} must have shape {list(shape)}, got {list(file.shape(parts[part]))}"
    return None
