"""PEFT adapters from before transformers 4.52, which moved the modules of a LLaVA one level down.

`language_model.model.layers` became `model.language_model.layers`, and `multi_modal_projector` became
`model.multi_modal_projector`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ext.original.configs import SAVED, build_targets
from llava_ext.original.names import ADAPTER_CONFIG, LINEARS, find_weights, list_tensor_names, read_optional_json
from llava_ext.original.record import describe_conversion, hash_sources, make_folder, raise_problems
from robustmerge.formats.adapter import PREFIX, WEIGHTS, open_adapter
from robustmerge.formats.tensors import TensorWriter, header_room
from robustmerge.stage.files import FolderWriter

_MOVES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
KEY_MAPPING = {
    rf"^{re.escape(old)}": new for old, new in _MOVES
}  # for peft, whose own mapping leaves the projector out
_LINEAR = re.compile(r"model\.language_model\.layers\.\d+\.(.+)")


def current_name(name: str) -> str:
    """The name of an adapter's tensor since transformers 4.52, from either name."""
    inner = name.removeprefix(PREFIX)
    for old, new in _MOVES:
        if inner.startswith(old):
            return name[: len(name) - len(inner)] + new + inner.removeprefix(old)
    return name


def current_targets(targets: Any) -> Any:
    """The target modules of an adapter's config since transformers 4.52: names in a list, or a regular expression."""
    if isinstance(targets, str):
        pattern = re.sub(r"language_model(\\?\.)model\\?\.", r"language_model\1", targets)
        return re.sub(r"^\^?language_model\\", r"model\\.language_model\\", pattern)  # it matches whole names
    return type(targets)(map(current_targets, targets)) if isinstance(targets, (list, set)) else targets


def has_old_names(folder: Path) -> bool:
    """Whether the tensors of a PEFT adapter have names from before transformers 4.52."""
    file = find_weights(folder)
    return file is not None and any(
        name.startswith(PREFIX + "language_model.model.") for name in list_tensor_names(file)
    )


def convert_old_names(adapter: Path, folder: Path, base: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the adapter with current names and targets; no tensor is changed. Returns the record of the conversion.

    Raises UserError for LoRA of anything but linears of the language model's layers.
    """
    opened = open_adapter(adapter)
    config = read_optional_json(adapter / ADAPTER_CONFIG) or {}
    linears, problems = set(), []
    for module in opened.modules:
        match = _LINEAR.fullmatch(current_name(module))
        if match is not None and match[1] in LINEARS:
            linears.add(match[1])
        else:
            problems.append(f"'{module}' is no linear of the language model's layers")
    raise_problems(adapter, problems)
    names = {current_name(name): name for name in opened.file.names}
    make_folder(adapter, folder)
    base = base or config.get("base_model_name_or_path") or ""
    layers = {module.split(".layers.")[1].split(".")[0] for module in opened.modules}
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
    config = {**config, "base_model_name_or_path": base, "target_modules": build_targets(linears)}
    text = "Names of tensors brought to those of transformers since 4.52, without any change of the numbers."
    small = describe_conversion(record, "library_name: peft\n", text, {ADAPTER_CONFIG: config})
    writer = TensorWriter(folder / WEIGHTS, header_room(names))
    with FolderWriter(folder, [writer], small):
        for name, stored in sorted(names.items()):
            writer.add(name, opened.file.get(stored))
    return record
