"""What the tensors of an adapter file are (LoRA, trained values of the base, or neither), and what is wrong there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustmerge.formats.adapter_config import rank_of, saved_modules
from robustmerge.formats.layer_kinds import LINEAR, LayerKind, find_kind
from robustmerge.formats.llava.names import LLAVA_CONFIG, is_llava_config
from robustmerge.formats.names import EMBEDDED, PARTS, Names, count_tensors, is_saved_whole, read_model_config, show
from robustmerge.formats.tensors import Tensors
from robustmerge.stage.files import read_json


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


def _problem_of(
    parts: Mapping[str, str], kind: LayerKind | None, file: Tensors, config: Mapping[str, Any], module: str
) -> str | None:
    """Why a module's tensors are not a pair for its kind of layer with the parts that the config asks for, or None."""
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


def find_resized(config: Mapping[str, Any], contents: Contents, file: Tensors) -> list[str]:
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


def find_tied(config: Mapping[str, Any], kinds: Mapping[str, LayerKind]) -> list[str]:
    """Find LoRA that an embedding shares with the head, whose A and B are the embedding's B and A, transposed.

    Merged separately, the two would differ, and peft, which loads both into the same memory, would keep the last one.
    """
    embeddings = [module for module, kind in kinds.items() if kind.is_embedding]
    if not config.get("ensure_weight_tying") or not embeddings:
        return []
    return [
        f"ensure_weight_tying makes the LoRA of '{show(embeddings[0])}' that of the output head too, which cannot be "
        "merged; train without it, or the embeddings whole (modules_to_save)"
    ]


def lacks_projector(folder: Path, config: Mapping[str, Any], contents: Contents) -> bool:
    """Whether a folder holds LoRA by LLaVA's own trainer, but no projector, which that trainer always trains.

    The tensors' names are those of a Llama; the base, or a config.json of LLaVA's code, says that the model is not one.
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
