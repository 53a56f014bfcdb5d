"""PEFT adapters from before transformers 4.52, where a LLaVA had its parts one level higher than today.

`language_model.model.layers` is `model.language_model.layers` today, `multi_modal_projector` is
`model.multi_modal_projector`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_ext.original.configs import SAVED, build_targets
from llava_ext.original.names import ADAPTER_CONFIG, LINEARS, find_weights, list_tensor_names, read_if_there
from robustmerge.formats.adapter import PREFIX, WEIGHTS, open_adapter
from robustmerge.formats.tensors import TensorWriter, room_for
from robustmerge.stage.settings import UserError, first_few

_MOVED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
MAPPING = {rf"^{re.escape(old)}": new for old, new in _MOVED}  # as peft takes it; its own leaves the projector behind
_LINEAR = re.compile(r"model\.language_model\.layers\.\d+\.(.+)")


def current_name(name: str) -> str:
    """The name of an adapter's tensor in a LLaVA of today; that of today stays."""
    inner = name.removeprefix(PREFIX)
    for old, new in _MOVED:
        if inner.startswith(old):
            return name[: len(name) - len(inner)] + new + inner.removeprefix(old)
    return name


def current_targets(targets: Any) -> Any:
    """Targets of an adapter's config that name the old level, in a list or in a regular expression, without it."""
    if isinstance(targets, str):
        today = re.sub(r"language_model(\\?\.)model\\?\.", r"language_model\1", targets)
        return re.sub(r"^\^?language_model\\", r"model\\.language_model\\", today)  # an expression matches whole names
    return type(targets)(map(current_targets, targets)) if isinstance(targets, (list, set)) else targets


def has_old_names(folder: Path) -> bool:
    """Whether a PEFT adapter has the names of before, by its tensors."""
    file = find_weights(folder)
    return file is not None and any(
        name.startswith(PREFIX + "language_model.model.") for name in list_tensor_names(file)
    )


def rename(adapter: Path, folder: Path, base: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Write the adapter with the names of today and our targets; no tensor is changed. Returns the record.

    Raises UserError for LoRA of anything but linears of the language model's layers.
    """
    from llava_ext.original.record import finish, hash_sources, start

    opened = open_adapter(adapter)
    config = read_if_there(adapter / ADAPTER_CONFIG) or {}
    linears = {module: _LINEAR.fullmatch(current_name(module)) for module in opened.modules}
    if odd := [module for module, found in linears.items() if found is None or found[1] not in LINEARS]:
        told = [f"{adapter}: '{module}' is no linear of the language model's layers" for module in odd]
        raise UserError("\n".join(first_few(told)))
    names = {current_name(name): name for name in opened.file.names}
    start(adapter, folder)
    with TensorWriter(folder / WEIGHTS, room_for(names)) as writer:
        for name, stored in sorted(names.items()):
            writer.add(name, opened.file.get(stored))
    base = base or config.get("base_model_name_or_path") or ""
    layers = {module.split(".layers.")[1].split(".")[0] for module in opened.modules}
    record = {
        "to": "peft",
        "asked": dict(asked),
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
    targets = build_targets({found[1] for found in linears.values()})
    ours = {**config, "base_model_name_or_path": base, "target_modules": targets}
    text = "Names of tensors brought to those of transformers since 4.52, without any change of the numbers."
    finish(folder, record, "library_name: peft\n", text, {ADAPTER_CONFIG: ours})
    return record
