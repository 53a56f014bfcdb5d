"""Adapters as LLaVA's own training writes them: how one is recognised, what it must hold, what its names mean.

`adapter_model.bin` holds the LoRA of the language model, `non_lora_trainables.bin` the whole projector,
`adapter_config.json` is that of peft 0.4, and `config.json` is LLaVA's. Code of the format:
https://github.com/haotian-liu/LLaVA. Importing this does not load torch, and recognising a folder reads no tensor.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustmerge.stage.files import read_json

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTOR = "non_lora_trainables.bin"
LLAVA_CONFIG = "config.json"
MODEL_TYPES = ("llava_llama", "llava")  # of version 1.2 and later, and of those before
# Every linear of a Llama layer: what goes in and what comes out. A is [r, in], B is [out, r].
LINEARS = {
    "self_attn.q_proj": ("hidden", "queries"),
    "self_attn.k_proj": ("hidden", "keys"),
    "self_attn.v_proj": ("hidden", "keys"),
    "self_attn.o_proj": ("queries", "hidden"),
    "mlp.gate_proj": ("hidden", "inner"),
    "mlp.up_proj": ("hidden", "inner"),
    "mlp.down_proj": ("inner", "hidden"),
}
# The tensors of the projector in the order of the file: LLaVA's name -> that of transformers. Index 1 is the GELU.
PROJECTOR_NAMES = {
    "0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "2.weight": "linear_2.weight", "2.bias": "linear_2.bias",
}  # fmt: skip
_LORA = re.compile(
    r"(?:base_model\.)?(?:model\.)+layers\.(\d+)\.(" + "|".join(map(re.escape, LINEARS)) + r")"
    r"\.lora_([AB])(?:\.default)?\.weight"
)
_PROJECTOR = re.compile(r"(?:base_model\.)?(?:model\.)*mm_projector\.(\d+\.(?:weight|bias))")
Place = tuple[int, str, str]  # layer, linear of LINEARS, A or B


def is_original(folder: Path) -> bool:
    """Whether a folder holds an adapter in LLaVA's own format: by its files and the names of its tensors.

    A LoRA of a Llama alone has the same names; what tells LLaVA's is the projector's file or LLaVA's config.
    """
    file = find_weights(folder)
    if file is None or not (folder / ADAPTER_CONFIG).is_file():
        return False
    names = [name for name in list_tensor_names(file) if ".lora_" in name]
    if not any(_LORA.fullmatch(name) for name in names) or any("language_model" in name for name in names):
        return False
    return (folder / PROJECTOR).is_file() or is_llava_config(read_if_there(folder / LLAVA_CONFIG))


def is_llava_config(config: Mapping[str, Any] | None) -> bool:
    """Whether it is LLaVA's own: transformers' config of a LLaVA, also of type `llava`, has none of these keys."""
    return config is not None and ("mm_projector_type" in config or "mm_vision_tower" in config)


def find_weights(folder: Path) -> Path | None:
    """The file of the LoRA tensors."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def list_files(folder: Path) -> list[Path]:
    """The files that a conversion reads, of those that are there."""
    named = [folder / ADAPTER_CONFIG, find_weights(folder), folder / PROJECTOR, folder / LLAVA_CONFIG]
    return [file for file in named if file is not None and file.is_file()]


def list_tensor_names(file: Path) -> set[str]:
    """All texts in the header of a .safetensors file or in the pickle of a .bin, tensor names among them.

    Nothing is unpickled. A damaged file gives no names.
    """
    try:
        if file.suffix == ".safetensors":
            with open(file, "rb") as read:
                return set(json.loads(read.read(int.from_bytes(read.read(8), "little"))))
        if not zipfile.is_zipfile(file):
            return set(_texts_before_torch_1_6(file))
        with zipfile.ZipFile(file) as archive:
            (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickle) as read:
                return set(_texts(read))
    except (OSError, ValueError, KeyError, IndexError, EOFError, MemoryError, zipfile.BadZipFile):
        return set()


def _texts(read: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(read):
        if "UNICODE" in opcode.name:
            yield argument


def _texts_before_torch_1_6(file: Path) -> Iterator[str]:
    """Four pickles follow one another: a number, the version, the system, and what was saved."""
    with open(file, "rb") as read:
        for _ in range(4):
            yield from _texts(read)


def read_if_there(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None without a file. Raises UserError if it holds something else."""
    return read_json(path, "a JSON file") if path.is_file() else None


def parse_lora_name(name: str) -> Place | None:
    """Layer, linear and part of a LoRA tensor by LLaVA's name; None for any other name."""
    found = _LORA.fullmatch(name)
    return (int(found[1]), found[2], found[3]) if found else None


def lora_name(place: Place) -> str:
    """How LLaVA's training names a LoRA tensor."""
    return f"base_model.model.model.layers.{place[0]}.{place[1]}.lora_{place[2]}.weight"


def projector_part(name: str) -> str | None:
    """`0.weight` for any spelling of that tensor's name in the projector's file; None for any other name."""
    found = _PROJECTOR.fullmatch(name)
    return found[1] if found else None


def projector_name(part: str) -> str:
    """How LLaVA's training names a tensor of the projector."""
    return f"base_model.model.model.mm_projector.{part}"
