"""The adapter format of LLaVA's own training: file names, tensor names, and the test whether a folder is in it.

`adapter_model.bin` holds the LoRA of the language model, `non_lora_trainables.bin` the whole projector,
`adapter_config.json` is that of peft 0.4, and `config.json` is LLaVA's. Source:
https://github.com/haotian-liu/LLaVA. Importing this does not load torch, and recognising a folder reads no tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustmerge.formats.adapter_config import CONFIG, find_weights
from robustmerge.formats.names import parse_names
from robustmerge.formats.torch_files import index_tensors
from robustmerge.stage.files import read_json, require_file
from robustmerge.stage.settings import UserError

PROJECTOR = "non_lora_trainables.bin"
LLAVA_CONFIG = "config.json"
ADAPTER_FILES = (  # what is fetched of a repository
    CONFIG, "adapter_model.*", PROJECTOR, LLAVA_CONFIG, "README.md",
)  # fmt: skip
MODEL_TYPES = ("llava_llama", "llava")  # of LLaVA 1.2 and later, and before
# The linears of a Llama layer and the names of their sizes (in, out). A is [r, in], B is [out, r].
LINEARS = {
    "self_attn.q_proj": ("hidden", "queries"),
    "self_attn.k_proj": ("hidden", "keys"),
    "self_attn.v_proj": ("hidden", "keys"),
    "self_attn.o_proj": ("queries", "hidden"),
    "mlp.gate_proj": ("hidden", "inner"),
    "mlp.up_proj": ("hidden", "inner"),
    "mlp.down_proj": ("inner", "hidden"),
}
# The tensors of the projector in the order of the file: name in LLaVA -> in transformers. Index 1 is the GELU.
PROJECTOR_NAMES = {
    "0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "2.weight": "linear_2.weight", "2.bias": "linear_2.bias",
}  # fmt: skip
_LAYER = re.compile(r"(?:model\.)*layers\.(\d+)\.(" + "|".join(map(re.escape, LINEARS)) + ")")
_PROJECTOR = re.compile(r"(?:base_model\.)?(?:model\.)*mm_projector\.(\d+\.(?:weight|bias))")
LoraKey = tuple[int, str, str]  # identifies a LoRA tensor: layer, linear of LINEARS, A or B


def is_original(folder: Path) -> bool:
    """Whether a folder holds an adapter in LLaVA's own format, by its files and the names of its tensors.

    A LoRA of a Llama alone has the same names; LLaVA's has the projector's file or LLaVA's config beside it.
    """
    file = find_weights(folder)
    if file is None or not (folder / CONFIG).is_file():
        return False
    names = [name for name in list_tensor_names(file) if ".lora_" in name]
    if not any(parse_lora_names(names).values()) or any("language_model" in name for name in names):
        return False
    return (folder / PROJECTOR).is_file() or is_llava_config(read_optional_json(folder / LLAVA_CONFIG))


def is_llava_config(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is that of LLaVA's code, by keys that transformers' config of the type `llava` lacks."""
    return config is not None and ("mm_projector_type" in config or "mm_vision_tower" in config)


def list_files(folder: Path) -> list[Path]:
    """The files of a folder that a conversion reads."""
    files = [folder / CONFIG, find_weights(folder), folder / PROJECTOR, folder / LLAVA_CONFIG]
    return [file for file in files if file is not None and file.is_file()]


def list_tensor_names(file: Path) -> set[str]:
    """The names of the tensors in a .safetensors or .bin file; none if it cannot be read: who opens it says why."""
    try:
        if require_file(file, "a file of tensors").suffix == ".safetensors":
            return set(safe_open(file, framework="np").keys())  # numpy: torch would be loaded
        return set(index_tensors(file))
    except (UserError, SafetensorError, OSError):
        return set()


def read_optional_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file does not exist. Raises UserError if it holds anything else."""
    return read_json(path, "a JSON file") if os.path.lexists(path) else None


def parse_lora_names(names: Collection[str]) -> dict[str, LoraKey | None]:
    """Layer, linear and part of the LoRA tensors that LLaVA's training gives these names; None for any other name."""
    parsed = parse_names(names, {}).parsed
    return {name: parse_layer(said.path, said.part) for name, said in parsed.items()}


def parse_layer(module: str, part: str | None) -> LoraKey | None:
    """The key of a module's tensor by its name in a Llama; None if LLaVA's training puts no LoRA there."""
    match = _LAYER.fullmatch(module)
    return (int(match[1]), match[2], part) if match and part is not None and part in "AB" else None


def lora_name(key: LoraKey) -> str:
    """The name of a LoRA tensor in LLaVA's training."""
    return f"base_model.model.model.layers.{key[0]}.{key[1]}.lora_{key[2]}.weight"


def projector_part(name: str) -> str | None:
    """`0.weight` for any spelling of that tensor's name in the projector's file; None for any other name."""
    match = _PROJECTOR.fullmatch(name)
    return match[1] if match else None


def projector_name(part: str) -> str:
    """The name of a tensor of the projector in LLaVA's training."""
    return f"base_model.model.model.mm_projector.{part}"
