"""PEFT adapters from before transformers 4.52, which moved the modules of a LLaVA one level down.

`language_model.model.layers` became `model.language_model.layers`, and `multi_modal_projector` became
`model.multi_modal_projector`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustmerge.formats.adapter import move_names, open_adapter
from robustmerge.formats.adapter_config import CONFIG, PATTERNS, TARGETS, WEIGHTS, anchor_patterns, find_weights
from robustmerge.formats.llava.configs import SAVED, build_targets
from robustmerge.formats.llava.names import LINEARS, list_tensor_names
from robustmerge.formats.llava.record import (
    describe_conversion,
    hash_sources,
    raise_problems,
    refuse_source_as_folder,
)
from robustmerge.formats.names import LLAVA, move, parse_names
from robustmerge.formats.tensors import TensorWriter, header_room
from robustmerge.stage.files import FolderWriter, read_json

_LINEAR = re.compile(r"model\.language_model\.layers\.\d+\.(.+)")


def has_old_names(folder: Path) -> bool:
    """Whether the tensors of a PEFT adapter have names from before transformers 4.52."""
    file = find_weights(folder)
    parsed = parse_names(list_tensor_names(file), {}).parsed if file is not None else {}
    return any(move(said.path, LLAVA) != said.path for said in parsed.values())


def convert_old_names(adapter: Path, folder: Path, base: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the adapter with current names and targets; no tensor is changed. Returns the record of the conversion.

    Raises UserError for LoRA of anything but linears of the language model's layers.
    """
    opened = move_names(open_adapter(adapter), LLAVA)
    config = read_json(adapter / CONFIG, "a LoRA config")
    linears, problems = set(), []
    for module in opened.modules:
        match = _LINEAR.fullmatch(module)
        if match is not None and match[1] in LINEARS:
            linears.add(match[1])
        else:
            problems.append(f"'{module}' is no linear of the language model's layers")
    raise_problems(adapter, problems)
    base = base or config.get("base_model_name_or_path") or ""
    layers = {module.split(".layers.")[1].split(".")[0] for module in opened.modules}
    has_all = len(opened.modules) == len(layers) * len(linears)
    record = {
        "to": "peft",
        "asked": dict(request),
        "base": base,
        "layers": len(layers),
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dtype": str(opened.dtype).removeprefix("torch."),
        "modules": len(opened.modules),
        "projector_tensors": sum(SAVED in extra for extra in opened.extras),
        "projector_dtype": None,
        "digests": hash_sources(adapter),
    }
    config |= {key: None for key in TARGETS if config.get(key)}
    config |= {"base_model_name_or_path": base}
    config |= {"target_modules": build_targets(linears) if has_all else list(opened.modules)}
    config |= {key: anchor_patterns(opened.config[key]) for key in PATTERNS if config.get(key)}
    text = "Names of tensors brought to those of transformers since 4.52, without any change of the numbers."
    small = describe_conversion(record, "library_name: peft\n", text, {CONFIG: config})
    refuse_source_as_folder(adapter, folder)
    names = opened.written_names
    writer = TensorWriter(folder / WEIGHTS, header_room(names))
    with FolderWriter(folder, [writer], small):
        for name, stored in sorted(names.items()):
            writer.add(name, opened.file.get(stored))
    return record
